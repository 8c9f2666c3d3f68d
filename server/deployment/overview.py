"""What is going on in a run, now, in one place: `consilium-server status`.

Everything is read from the run's folder and the process table, so asking costs the study
nothing and works while it runs, after it ended, and after it was killed.
"""

import contextlib
import os
import statistics
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from common.console.spans import format_span
from common.errors import ConfigError
from common.processes import watchdog
from common.settings import Frozen
from server.state import Approvals, Asked, Progress, SiteApproval
from server.storage import checkpoint
from server.storage.history import RoundRecord, read_rounds
from server.storage.status import Stage, read_status


class SiteNow(Frozen):
    """One site, now."""

    outcome: str
    after_s: float | None
    """In which it answered; None while it is awaited."""
    late_s: float | None
    """Beyond the time in which it usually answers, while it is awaited; None if that is not known."""
    reason: str


class Overview(Frozen):
    """One run, now."""

    study: str
    stage: Stage
    reason: str
    since: datetime
    """When it got to this stage."""
    round: int | None
    rounds: int | None
    phase: str
    round_s: float | None
    """Since the plans of this round went out."""
    deadline_s: float | None
    """Of this round, from its start."""
    sites: dict[str, SiteNow]
    mib_down: float
    """To all sites so far, tensors only."""
    mib_up: float
    last_checkpoint: int | None
    """Round after which the study can be resumed."""
    memory_mib: dict[str, float]
    """Resident, by process of this machine; empty for a run that is over."""
    absent: dict[str, str] = Field(default_factory=dict)
    """Sites that the study names and that do not take part, each with the reason."""


def read_run(run_dir: Path, now: datetime | None = None, *, flwr_home: Path | None = None) -> Overview:
    """The run in this folder, now; its Flower keeps its files in `flwr_home`.

    Raises ConfigError if there is none.
    """
    found = read_status(run_dir)
    if found is None:
        raise ConfigError(f"{run_dir} has no status.json: no study has begun there; give the folder of a run")
    status, now = found.or_died(), now or datetime.now(UTC)
    progress, rounds = status.progress, read_rounds(run_dir)
    people = status.approvals if status.status in ("starting", "running") else None
    going_on = progress is not None and status.status == "running"
    last = checkpoint.latest(run_dir)
    rows = [row for record in rounds for row in record.sites]
    return Overview(
        study=run_dir.name,
        stage=status.status,
        reason=status.reason,
        since=status.since,
        round=progress.round if progress else None,
        rounds=progress.rounds if progress else None,
        phase=_ended_phase(progress) if status.is_over else _phase(progress, people),
        round_s=(now - progress.since).total_seconds() if progress and going_on else None,
        deadline_s=progress.deadline_s if progress and going_on else None,
        sites=_people(people, now)
        if people
        else {
            site: (_unanswered(asked) if status.is_over else None)
            or _site(site, asked, progress, rounds, now if going_on else None)
            for site, asked in progress.sites.items()
        }
        if progress
        else {},
        absent=status.absent,
        mib_down=sum(row.mib_down for row in rows),
        mib_up=sum(row.mib_up for row in rows),
        last_checkpoint=checkpoint.number_of(last) if last else None,
        memory_mib=memory_mib(flwr_home or run_dir / "federation" / "flower"),
    )


def describe_run(overview: Overview, now: datetime | None = None) -> str:
    """The run in a few lines for a person."""
    width = max(map(len, overview.sites), default=0)
    sites = (f"  {site:<{width}}  {describe_site(state)}" for site, state in overview.sites.items())
    return "\n".join([*heading(overview, now), *sites, *absences(overview), *totals(overview)])


def heading(overview: Overview, now: datetime | None = None) -> list[str]:
    """Lines on the run itself: stage, round, deadline."""
    now = now or datetime.now(UTC)
    ago = format_span((now - overview.since).total_seconds())
    lines = [f"{overview.study}: {overview.stage}, {overview.reason} (since {ago})", overview.phase]
    if overview.round_s is not None and overview.deadline_s is not None:
        left = max(0.0, overview.deadline_s - overview.round_s)
        lines[-1] += f", for {format_span(overview.round_s)}; the deadline is in {format_span(left)}"
    return lines


def absences(overview: Overview) -> list[str]:
    """Lines on sites that do not take part and are not in the table of the round."""
    return [
        f"  {site} takes no part: {reason}"
        for site, reason in overview.absent.items()
        if site not in overview.sites
    ]


def totals(overview: Overview) -> list[str]:
    """Lines on traffic, the last checkpoint and memory."""
    return [
        f"{overview.mib_down:,.1f} MiB sent to sites, {overview.mib_up:,.1f} MiB received, tensors only",
        "no checkpoint yet"
        if overview.last_checkpoint is None
        else f"last checkpoint: after round {overview.last_checkpoint}",
        *(f"  {name}: {mib:,.0f} MiB of memory" for name, mib in overview.memory_mib.items()),
    ]


def _phase(progress: Progress | None, people: Approvals | None) -> str:
    if people is not None:
        until = "" if people.until is None else f", until {people.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        return f"waiting for people at the sites to approve the study{until}"
    if progress is None:
        return "before round 1: waiting for sites to connect and to set up the study"
    again = f", attempt {progress.attempt}" if progress.attempt > 1 else ""
    if progress.closing:
        return f"closing evaluation after round {progress.round - 1}{again}"
    return f"round {progress.round} of {progress.rounds}{again}"


def _ended_phase(progress: Progress | None) -> str:
    """Where a study was when it ended."""
    if progress is None:
        return "ended before round 1"
    return f"last: {_phase(progress, None)}"


def _site(
    site: str, asked: Asked, progress: Progress, rounds: tuple[RoundRecord, ...], now: datetime | None
) -> SiteNow:
    late_s = None
    past = [
        row.answered_after_s
        for record in rounds[-5:]
        for row in record.sites
        if row.site == site and row.outcome == "ok"
    ]
    if asked.outcome == "awaited" and past and now is not None:
        late_s = max(0.0, (now - progress.since).total_seconds() - statistics.median(past))
    return SiteNow(outcome=asked.outcome, after_s=asked.after_s, late_s=late_s, reason=asked.reason)


def _unanswered(asked: Asked) -> SiteNow | None:
    """A site that was awaited when its study ended."""
    if asked.outcome != "awaited":
        return None
    return SiteNow(
        outcome="missing", after_s=None, late_s=None, reason="it had not answered when the study ended"
    )


_PEOPLE = {
    "undecided": "waits for approval",
    "closed": "closed",
    "yes": "approved",
    "no": "declined",
}
"""Words for the answers of people, which are outcomes of a site before round 1."""


def _people(people: Approvals, now: datetime) -> dict[str, SiteNow]:
    return {site: _person(answer, now) for site, answer in people.sites.items()}


def _person(answer: SiteApproval, now: datetime) -> SiteNow:
    since = f"since {answer.since.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    span = format_span(max(0.0, (now - answer.since).total_seconds()))
    return SiteNow(
        outcome=_PEOPLE[answer.answer],
        after_s=None,
        late_s=None,
        reason="; ".join(filter(None, (f"{since} ({span})", answer.reason))),
    )


def describe_site(site: SiteNow) -> str:
    """A site's answer in this round, for a person."""
    match site.outcome:
        case outcome if outcome in _PEOPLE.values():
            return f"{outcome} {site.reason}"
        case "ok":
            return f"answered after {format_span(site.after_s or 0.0)}"
        case "awaited" if site.late_s:
            return f"awaited, {format_span(site.late_s)} later than usual"
        case "awaited":
            return "awaited"
        case _:
            return f"{site.outcome.replace('_', ' ')}: {site.reason}"


def memory_mib(flwr_home: Path) -> dict[str, float]:
    """Resident memory of the run's processes, by the name under which they were started."""
    home = f"FLWR_HOME={flwr_home.resolve()}".encode()
    found: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            environment = (folder / "environ").read_bytes().split(b"\0")
            owner = [entry for entry in environment if entry.startswith(f"{watchdog.OWNER}=".encode())]
            if home in environment and owner:
                name = owner[0].decode(errors="replace").rpartition("/")[2]
                pages = int((folder / "statm").read_text().split()[1])
                found[name] = found.get(name, 0.0) + pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return dict(sorted(found.items()))
