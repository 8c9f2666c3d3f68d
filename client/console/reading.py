"""What the site's pages show, read from the trainer's files.

Only the audit log, the approvals and the page of a preflight are read; `state_dir` holds decoded images as well, and
these are left alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.config import SiteConfig
from client.governance import approval, audit, policy, study_summary
from client.governance.facts import Facts
from client.governance.hash_chain import Fields
from common import wire
from common.config import StudyConfig
from common.settings import to_yaml

PER_PAGE = 100
PREFLIGHT = "console/preflight.html"
"""Name of the preflight's page in `state_dir`, where the console looks for it."""

_PASSING = ("ask", "hours", "max_runs")
"""Rules about this moment, or about what was decided before."""
_SHOWN = {"time", "event", "study", "kind", "bytes", "sha256"}
_NOT_SHOWN = {
    "previous",
    "hash",
    "salt",
    "plan_id",
    "fingerprint",
    "arrays",
    "asked",
    "tensor_names",
    "train",
}


@dataclass(frozen=True)
class Message:
    """One line of the audit log."""

    time: str
    event: str
    study: str
    kind: str
    num_bytes: int | None
    sha256: str
    about: tuple[tuple[str, str], ...]
    """Other fields."""

    @property
    def left(self) -> bool:
        """It went to the server."""
        return self.event == "sent"


@dataclass(frozen=True)
class MessagePage:
    """Some lines of the audit log, the newest first."""

    messages: tuple[Message, ...]
    page: int
    pages: int
    found: int
    num_bytes: int
    """Of all that were found and left the site."""
    studies: tuple[str, ...]
    """Every study in the log."""


@dataclass(frozen=True)
class StudyToRead:
    """A study, with everything that a person should know before deciding about it."""

    study: approval.Pending
    lines: tuple[str, ...]
    settings: str
    """Every setting, as YAML."""
    refusals: tuple[str, ...]
    """What this site's policy would refuse, whatever the person decides."""

    @property
    def name(self) -> str:
        """Of the study."""
        return self.study.study.name


def studies(site: SiteConfig) -> dict[str, StudyToRead]:
    """The studies that wait and those that were decided about, by label, the waiting ones first."""
    known = [*approval.pending(site.state_dir), *approval.decided(site.state_dir)]
    return {one.label: _to_read(one, site) for one in known}


def _to_read(one: approval.Pending, site: SiteConfig) -> StudyToRead:
    return StudyToRead(
        one,
        tuple(study_summary.lines(one.study)),
        to_yaml(one.study.model_dump(mode="json")).decode(),
        tuple(_refusals(one.study, site)),
    )


def _refusals(study: StudyConfig, site: SiteConfig) -> Iterable[str]:
    if site.name not in study.sites.all:
        yield f"the study does not name {site.name}, only {', '.join(study.sites.all)}"
        return
    plan = wire.EnrolPlan(plan_id="console", site=site.name, study=study, want_weights=False)
    facts = Facts(now=datetime.now(UTC), decision="yes", rounds_today=0, num_bytes=0, built=None)
    for one in policy.check(plan, site.policy, facts):
        if one.rule not in _PASSING:
            yield f"{one.message} (policy.{one.rule}: {one.limit})"


def messages(state_dir: Path, *, study: str = "", all_lines: bool = False, page: int = 1) -> MessagePage:
    """One page of what has left, or of every line of the log. Raises StorageError."""
    known: dict[str, str] = {}  # study by plan
    found: list[Message] = []
    names: dict[str, None] = {}  # in their order
    for fields in audit.events(state_dir / audit.FILE):
        if "study" in fields:
            known[str(fields.get("plan_id"))] = str(fields["study"])
        name = str(fields.get("study") or known.get(str(fields.get("plan_id")), ""))
        names[name] = None
        if (all_lines or fields["event"] == "sent") and (not study or name == study):
            found.append(_message(fields, name))
    found.reverse()
    pages = max(1, -(-len(found) // PER_PAGE))
    page = min(max(page, 1), pages)
    return MessagePage(
        tuple(found[(page - 1) * PER_PAGE : page * PER_PAGE]),
        page,
        pages,
        len(found),
        sum(one.num_bytes or 0 for one in found if one.left),
        tuple(name for name in names if name),
    )


def _message(fields: Fields, study: str) -> Message:
    size = fields.get("bytes")
    return Message(
        time=str(fields["time"])[:19].replace("T", " "),
        event=str(fields["event"]),
        study=study,
        kind=str(fields.get("kind", "")),
        num_bytes=size if isinstance(size, int) else None,
        sha256=str(fields.get("sha256", "")),
        about=tuple(
            (name, _plain(value)) for name, value in fields.items() if name not in _SHOWN | _NOT_SHOWN
        ),
    )


def _plain(value: object) -> str:
    """A field of the log without brackets: `examples 56, validation 1 2 3`."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    return " ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def preflight(state_dir: Path) -> Path | None:
    """The page that `check --html` wrote to `state_dir`; None without one."""
    path = state_dir / PREFLIGHT
    return path if path.is_file() and not path.is_symlink() else None
