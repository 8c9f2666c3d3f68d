"""Earlier runs of a grid: what of them counts for a study that is to be run with these sites."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from common import log
from common.config import StudyConfig
from common.settings import load_settings
from server.report.text import counted
from server.simulation import site_data
from server.simulation.site_data import Digests
from server.storage import checkpoint
from server.storage.history import read_rounds
from server.storage.status import INCOMPLETE, read_status

State: TypeAlias = Literal["finished", "incomplete", "broke off"]
_MOST_NAMES = 5
"""Runs that a warning names."""


def state(run_dir: Path, study: StudyConfig, sites: Digests) -> State | None:
    """How far a run of this very study with these very sites got; None if it is to be run from its beginning.

    A run of which it is not known what its sites had is taken for one of these.
    """
    found = _of_study(run_dir, study)
    return None if found is None or isinstance(site_data.origin(run_dir, sites), tuple) else found


def warn_of_other_sites(folder: Path, studies: Iterable[StudyConfig], sites: Digests) -> None:
    """Name the runs in `folder` that would count if they were of these sites, and those of which that is not known."""
    unknown, others = list[str](), dict[str, tuple[str, ...]]()
    for study in studies:
        run_dir = folder / study.name
        if _of_study(run_dir, study) is None:
            continue
        origin = site_data.origin(run_dir, sites)
        if isinstance(origin, tuple):
            others[study.name] = origin
        elif origin == "not known":
            unknown.append(study.name)
    if others:
        changed = sorted({site for names in others.values() for site in names})
        log.warn(
            f"{counted(len(others), 'earlier run')} of other data or another split at {_some(changed)} "
            f"({_some(list(others))}): set aside, and run again with these sites"
        )
    if unknown:
        log.warn(
            f"{counted(len(unknown), 'earlier run')} without {site_data.FILE}, which says of which data a run is "
            f"({_some(unknown)}): kept, and it is not known whether of these sites; if of others, give another folder "
            "with --runs"
        )


def _of_study(run_dir: Path, study: StudyConfig) -> State | None:
    """How far a run of this very study got, whatever its sites had."""
    settings = run_dir / "study.yaml"
    if not settings.exists() or load_settings(settings, StudyConfig, "study") != study:
        return None
    now = read_status(run_dir)
    if now is None or now.status == "finished":
        # The closing evaluation is on record. A study may still fail after it, or be incomplete.
        rounds = read_rounds(run_dir)
        return "finished" if rounds and rounds[-1].closing else None
    if now.status == INCOMPLETE:
        return "incomplete"
    broke_off = now.or_died().status == "crashed" and checkpoint.latest(run_dir) is not None
    return "broke off" if broke_off else None


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
