"""Status of a site, for `consilium-site status`: its current work, and what has left it by study.

It is read from the audit log, which has a line for every message in and out, and from whether the
trainer's socket answers. Nothing is written and no message is sent.
"""

import socket as sockets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from client.governance import approval, audit
from client.governance.contract import CONTRACT
from client.governance.hash_chain import Fields
from common.console.spans import format_span
from common.network import unix_sockets


@dataclass
class Sent:
    """Totals of what has left the site for one study."""

    answers: int = 0
    rounds: set[int] = field(default_factory=set)
    num_bytes: int = 0
    refused: int = 0
    """Plans that the policy refused."""
    beyond: int = 0
    """Plans that did not follow from their study."""
    repeated: int = 0
    """Plans that came again after they were answered."""
    failed: int = 0
    last: str = ""
    """When something last left."""


def describe(
    name: str, state_dir: Path, socket: Path | None, now: datetime | None = None, spent: Sequence[str] = ()
) -> str:
    """The status as text; `spent` are lines on privacy. Raises StorageError."""
    lines = [f"{name}: {trainer(socket)}"]
    lines += summarize(audit.events(state_dir / audit.FILE), now or datetime.now(UTC))
    lines += spent
    lines += [f"waits for your approval: {approval.describe(study)}" for study in approval.pending(state_dir)]
    return "\n".join(lines)


@dataclass(frozen=True)
class Work:
    """What a site does now, and what it has sent."""

    open_plan: Fields | None
    """The plan that is worked on; None while the site waits for one."""
    last: Fields | None
    """The log's last line; None without any."""
    by_study: dict[str, Sent]


def summarize(events: Iterable[Fields], now: datetime) -> list[str]:
    """Lines on the current work and, by study, on what has left, from the audit log's entries."""
    work = follow(events)
    if work.last is None:
        return ["no plan received and nothing sent yet"]
    lines = (describe_study(name, left) for name, left in work.by_study.items())
    return [doing(work, now), *lines]


def follow(events: Iterable[Fields]) -> Work:
    """The current work and, by study, what has left, from the audit log's entries."""
    by_study: dict[str, Sent] = {}
    studies: dict[str, str] = {}  # by plan
    answered: set[str] = set()
    answered_before = False
    open_plan: Fields | None = None
    last: Fields | None = None
    for fields in events:
        last, plan_id = fields, str(fields.get("plan_id"))
        if fields["event"] == "plan" and "study" in fields:
            answered_before = plan_id in answered
            studies[plan_id] = str(fields["study"])
            if fields.get("kind") != "approval":  # a person is asked, nothing is computed
                open_plan = fields
        if plan_id not in studies:
            continue  # an approval, or a message that is not a plan
        left = by_study.setdefault(studies[plan_id], Sent())
        left.repeated += fields["event"] == "plan" and answered_before
        match fields["event"]:
            case "sent":
                left.answers += 1
                answered.add(plan_id)
                left.num_bytes += _number(fields.get("bytes"))
                left.last = str(fields["time"])
                if fields.get("kind") == "answer":
                    left.rounds.add(_number(fields.get("round")))
                open_plan = None
            case "refusal" if str(fields.get("reason", "")).startswith(CONTRACT):
                left.beyond += 1
            case "refusal":
                left.refused += 1
            case "failure":
                left.failed += 1
    return Work(open_plan, last, by_study)


def doing(work: Work, now: datetime) -> str:
    """What the site works on, and since when."""
    if work.last is None:
        return "no plan received and nothing sent yet"
    if (open_plan := work.open_plan) is None:
        return f"waits for a plan, since {_since(work.last, now)}"
    what = f"round {open_plan['round']}" if "round" in open_plan else "the set-up"
    return f"works on {what} of study {open_plan['study']}, since {_since(open_plan, now)}"


def describe_study(name: str, left: Sent) -> str:
    """What has left for one study, in one line."""
    sent = f"{left.answers} answers, {left.num_bytes / 2**20:,.1f} MiB"
    rounds = f", of {len(left.rounds)} rounds" if left.rounds else ""
    last = f"; last at {left.last[:19].replace('T', ' ')} UTC" if left.last else ""
    counts = (
        (left.beyond, "asked for BEYOND the study and refused, see `consilium-site audit`"),
        (left.refused, "refused by the policy"),
        (left.repeated, "asked for again"),
        (left.failed, "failed"),
    )
    others = "".join(f"; {count} {what}" for count, what in counts if count)
    return f"  study {name}: {sent}{rounds}, have left{last}{others}"


def _since(fields: Fields, now: datetime) -> str:
    then = datetime.fromisoformat(str(fields["time"]))
    seconds = max(0.0, (now - then).total_seconds())
    return f"{then:%Y-%m-%d %H:%M:%S} UTC ({format_span(seconds)})"


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def trainer(socket: Path | None) -> str:
    """Whether the trainer runs, for a person."""
    if socket is None:
        return "site.yaml names no socket, so whether the trainer runs is not known"
    if (why := unix_sockets.too_long(socket)) is not None:
        return f"the trainer is NOT running, and cannot: {why}"
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(socket))
        except (FileNotFoundError, ConnectionRefusedError):
            return "the trainer is NOT running"
        except (BlockingIOError, TimeoutError):
            return "the trainer is running, and too busy to answer"
        except OSError as error:
            return f"whether the trainer runs is not known: its socket cannot be asked ({error.strerror or error})"
    return "the trainer is running"
