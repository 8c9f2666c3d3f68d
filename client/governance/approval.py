"""Approvals: studies that a person at this site has agreed to, where the policy says `ask: true`.

A plan does not wait inside the trainer. It is refused until the study is approved, so nothing
hangs over a weekend, and the server gets the reason. Pending and approved studies are
files under `state_dir`, one per study, for people to read or remove. They are named
by the fingerprint of the whole study, so a changed study has to be approved again.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from common import json_text
from common.config import StudyConfig
from common.errors import ConfigError, StorageError
from common.files import write_atomically

_MOST_PENDING = 100
"""Limit on pending studies, so that a server cannot fill the site's disk."""
_SHOWN = 12


@dataclass(frozen=True)
class Pending:
    """A study that waits for a person's approval."""

    study: StudyConfig
    asked: str
    """When its first plan came, ISO 8601."""

    @property
    def label(self) -> str:
        """Argument of `approve`; the name alone is enough if only one study has it."""
        return f"{self.study.name}-{self.study.fingerprint[:_SHOWN]}"


def is_approved(state_dir: Path, study: StudyConfig) -> bool:
    """Whether a person at this site has approved exactly this study."""
    return _path(state_dir, "approved", study).exists()


def given(state_dir: Path, study: StudyConfig) -> str:
    """When this study was approved, ISO 8601; empty if it was not. Raises StorageError."""
    path = _path(state_dir, "approved", study)
    try:
        return str(json.loads(path.read_bytes())["approved"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} cannot be read as an approval; remove it and approve the study again"
        ) from error


def note(state_dir: Path, study: StudyConfig, now: datetime) -> None:
    """Add this study to the pending ones. Raises StorageError."""
    path = _path(state_dir, "pending", study)
    if path.exists() or len(list(path.parent.glob("*.json"))) >= _MOST_PENDING:
        return
    write_atomically(path, _text(study, asked=now.isoformat(timespec="seconds")))


def pending(state_dir: Path) -> list[Pending]:
    """Studies that wait, the longest waiting first. Raises StorageError for an edited file."""
    studies = [_read(path) for path in _folder(state_dir, "pending").glob("*.json")]
    return sorted(
        (one for one in studies if not is_approved(state_dir, one.study)),
        key=lambda one: (one.asked, one.label),
    )


def find(state_dir: Path, wanted: str) -> Pending:
    """The pending study with this name or label. Raises ConfigError and StorageError."""
    waiting = pending(state_dir)
    meant = [one for one in waiting if wanted in (one.study.name, one.label)]
    if len(meant) != 1:
        listed = ", ".join(one.label for one in waiting) or "nothing"
        raise ConfigError(
            f"found {len(meant)} studies named {wanted!r}; waiting: {listed}. Name one of these."
        )
    return meant[0]


def approve(state_dir: Path, meant: Pending, *, by: str, now: datetime) -> None:
    """Approve this study, in the name of `by`. Raises StorageError."""
    approved = _path(state_dir, "approved", meant.study)
    write_atomically(approved, _text(meant.study, approved=now.isoformat(timespec="seconds"), by=by))
    _path(state_dir, "pending", meant.study).unlink(missing_ok=True)


def describe(one: Pending) -> str:
    """What a person should know before approving a study."""
    study, local = one.study, one.study.local
    work = f"{local.num_epochs} epoch(s)" if local.num_epochs is not None else f"{local.steps} steps"
    tuned = "" if study.model.tuning is None else f" by {study.model.tuning.kind}"
    return (
        f"{one.label}: asked {one.asked}\n"
        f"  {study.model.kind} {study.model.encoder}{tuned}, classes {', '.join(study.classes)}\n"
        f"  {study.rounds} rounds of {work}, {study.algorithm.kind}\n"
        f"  trains: {', '.join(study.sites.train)}; scores only: {', '.join(study.sites.evaluate) or 'none'}"
    )


def _folder(state_dir: Path, kind: str) -> Path:
    return state_dir / "approvals" / kind


def _path(state_dir: Path, kind: str, study: StudyConfig) -> Path:
    return _folder(state_dir, kind) / f"{study.name}-{study.fingerprint}.json"


def _text(study: StudyConfig, **about: str) -> bytes:
    return json.dumps(about | {"study": study.model_dump(mode="json")}, indent=1).encode()


def _read(path: Path) -> Pending:
    """The pending study in a file. Raises StorageError if the file was edited: it is then another study."""
    try:
        content = json_text.loads(path.read_bytes())
        one = Pending(StudyConfig.model_validate(content["study"]), str(content["asked"]))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise StorageError(
            f"{path} cannot be read as a study; remove it, and the study will ask again"
        ) from error
    if path.stem != f"{one.study.name}-{one.study.fingerprint}":
        raise StorageError(
            f"{path} was edited and is another study than its name says; remove it, and the study will ask again"
        )
    return one
