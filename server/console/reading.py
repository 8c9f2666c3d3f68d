"""What the console's pages show, read from the server's folder.

A file that cannot be read is named on the page, and the rest is shown.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from common.config import StudyConfig
from common.errors import ConsiliumError
from common.settings import load_settings
from server.console.curves import Chart, of_study
from server.deployment import overview, queue, site_keys
from server.deployment.folder import ServerFolder
from server.deployment.refusals import latest, sentence
from server.enrolment import census
from server.report import census_table
from server.storage import checkpoint, history
from server.storage.history import RoundRecord
from server.storage.status import INCOMPLETE, Stage, read_status

_MOST_STUDIES, _MOST_REFUSALS = 200, 50
_DOWNLOADS = re.compile(
    r"(report\.(md|html|json)|model_card\.md|README\.md|\w+\.png|(weights|best)\.safetensors|rounds\.jsonl|census\.json"
    r"|study\.yaml|status\.json|audit-heads\.jsonl|overlap\.json|heads\.json)"
)
_CHECKPOINT = re.compile(r"round-\d{4,9}\.safetensors|best\.safetensors")

Value = TypeVar("Value")


@dataclass(frozen=True)
class StudyRow:
    """One study that ran or runs."""

    name: str
    stage: Stage
    reason: str
    since: datetime
    num_rounds: int | None


@dataclass(frozen=True)
class StudyFile:
    """One file of a study that can be fetched."""

    name: str
    num_bytes: int


@dataclass(frozen=True)
class SiteTotals:
    """One site over the rounds of a study."""

    site: str
    mib_down: float
    mib_up: float
    outcomes: dict[str, int]
    """Rounds by outcome."""
    last_s: float | None
    """Seconds in which it answered last."""


@dataclass(frozen=True)
class StudyPage:
    """One study, in detail."""

    name: str
    now: overview.Overview | None
    lines: tuple[str, ...]
    """Stage, round and deadline, for a person."""
    study: StudyConfig | None
    charts: tuple[Chart, ...]
    rounds: tuple[RoundRecord, ...]
    """Newest first."""
    totals: tuple[SiteTotals, ...]
    census: tuple[list[str], list[list[str]]] | None
    """Head and rows."""
    files: tuple[StudyFile, ...]
    checkpoints: tuple[StudyFile, ...]
    orders: tuple[str, ...]
    """What can be asked of it now: `stop`, `resume`."""
    readmittable: tuple[str, ...]
    """Sites that can be readmitted."""
    problems: tuple[str, ...]


@dataclass
class _Problems:
    messages: list[str] = field(default_factory=list)

    def guard(self, read: Callable[[], Value]) -> Value | None:
        """What `read` returns; None if it fails, which is noted."""
        try:
            return read()
        except (ConsiliumError, OSError) as error:
            self.messages.append(str(error))
            return None


def run_dir(folder: ServerFolder, name: str) -> Path | None:
    """The folder of the run with this name; None if there is none."""
    known = {path.name: path for path in folder.runs.glob("*") if path.is_dir() and not path.is_symlink()}
    return known.get(name)


def studies(folder: ServerFolder) -> list[StudyRow]:
    """Studies that ran or run, the newest first."""
    files = sorted(folder.runs.glob("*/status.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    rows = []
    for file in files[:_MOST_STUDIES]:
        now = _Problems().guard(lambda file=file: read_status(file.parent))  # type: ignore[misc]
        if now is not None:
            now = now.or_died()
            rounds = None if now.progress is None else now.progress.rounds
            rows.append(StudyRow(file.parent.name, now.status, now.reason, now.since, rounds))
    return rows


def study_page(folder: ServerFolder, name: str) -> StudyPage:
    """Everything about one study that has a folder."""
    run, problems = folder.runs / name, _Problems()
    now = problems.guard(lambda: overview.read_run(run, flwr_home=folder.flwr_home))
    rounds = problems.guard(lambda: history.read_rounds(run)) or ()
    study = problems.guard(lambda: load_settings(run / "study.yaml", StudyConfig, "study"))
    counted = problems.guard(lambda: census.load(run))
    table = None
    if study is not None and counted is not None:
        head, body, foot = census_table.cells(study, counted)
        table = head, [*body, *foot]
    totals = site_totals(rounds)
    return StudyPage(
        name=name,
        now=now,
        lines=_status_line(run, problems) if now is None else (*overview.heading(now), *overview.totals(now)),
        study=study,
        charts=tuple(of_study(rounds)),
        rounds=tuple(reversed(rounds)),
        totals=totals,
        census=table,
        files=_files(run, _DOWNLOADS),
        checkpoints=_files(run / "checkpoints", _CHECKPOINT),
        orders=_orders(folder, name, now, study),
        readmittable=_readmittable(now, rounds),
        problems=tuple(dict.fromkeys(problems.messages)),
    )


def _status_line(run: Path, problems: _Problems) -> tuple[str, ...]:
    """The stage alone, of a study whose other files cannot be read."""
    status = problems.guard(lambda: read_status(run))
    return () if status is None else (f"{status.or_died().status}, {status.or_died().reason}",)


def refusals(folder: ServerFolder) -> list[tuple[datetime, str]]:
    """The last refused connections, the newest first, as sentences."""
    keys = site_keys.read_key_files(folder).keys.values()
    sites, gone = {key.fingerprint: key.site for key in keys}, site_keys.revoked(folder)
    return [(one.time, sentence(one, sites, gone)) for one in latest(folder.refusals, _MOST_REFUSALS)]


def file_of(run: Path, name: str) -> Path | None:
    """A file of a run that can be fetched, by its name on the page; None for any other."""
    files = {one.name: run / one.name for one in _files(run, _DOWNLOADS)}
    files |= {
        f"checkpoints-{one.name}": run / "checkpoints" / one.name
        for one in _files(run / "checkpoints", _CHECKPOINT)
    }
    return files.get(name)


def site_totals(rounds: Sequence[RoundRecord]) -> tuple[SiteTotals, ...]:
    """Each site over these rounds, by name."""
    rows = [row for record in rounds for row in record.sites]
    totals = []
    for site in sorted({row.site for row in rows}):
        own = [row for row in rows if row.site == site]
        answered = [row.answered_after_s for row in own if row.outcome == "ok"]
        outcomes = {outcome: sum(row.outcome == outcome for row in own) for outcome in _OUTCOMES}
        totals.append(
            SiteTotals(
                site,
                sum(row.mib_down for row in own),
                sum(row.mib_up for row in own),
                {outcome: count for outcome, count in outcomes.items() if count},
                answered[-1] if answered else None,
            )
        )
    return tuple(totals)


_OUTCOMES = ("ok", "refused", "failed", "missing", "set_aside", "absent")


def _files(folder: Path, names: re.Pattern[str]) -> tuple[StudyFile, ...]:
    return tuple(
        StudyFile(path.name, path.stat().st_size)
        for path in sorted(folder.glob("*"))
        if names.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    )


def _orders(
    folder: ServerFolder, name: str, now: overview.Overview | None, study: StudyConfig | None
) -> tuple[str, ...]:
    """Asked again when the order is given; here only so that no useless button is shown."""
    current = queue.running(folder)
    if current is not None and current.name == name:
        return ("stop",) if folder.is_up else ()
    waits = any(entry.name == name for entry in queue.waiting(folder))
    aside = study is None or study.name != name  # an earlier run, whose name another one has now
    can_go_on = not aside and now is not None and now.stage in ("stopped", "failed", "crashed", INCOMPLETE)
    return (
        ("resume",) if can_go_on and not waits and checkpoint.latest(folder.runs / name) is not None else ()
    )


def _readmittable(now: overview.Overview | None, rounds: Sequence[RoundRecord]) -> tuple[str, ...]:
    if now is None or now.stage == "finished" or not rounds:
        return ()
    return tuple(row.site for row in rounds[-1].sites if row.outcome in ("set_aside", "refused"))
