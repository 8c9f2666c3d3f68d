"""Approvals: what people at this site have decided about studies, where the policy says `ask: true`.

A study waits at the server, not at the site: the server asks again until a person has decided. Nothing
is built and no image is read before that. Pending, approved and refused studies are
files under `state_dir`, one per study, for people to read or remove. They are named
by the fingerprint of the whole study, so a changed study has to be approved again.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ValidationError

from client.governance.study_summary import lines
from common import log
from common.config import StudyConfig
from common.errors import ConfigError, StorageError
from common.files import write_atomically
from common.formats import json_text
from common.wire import LONGEST_NO

_MOST_PENDING = 100
"""Limit on pending studies, so that a server cannot fill the site's disk. Beyond it the one that was asked first
goes; if it still waits, the server asks again."""
_SHOWN = 12

_Kind: TypeAlias = Literal["pending", "approved", "refused"]
_TIMES: dict[_Kind, str] = {"pending": "asked", "approved": "approved", "refused": "refused"}
"""Name of the time in the file of a study, by the kind of file."""


@dataclass(frozen=True)
class Pending:
    """A study that waits for a person's approval, or that a person has decided about."""

    study: StudyConfig
    asked: str
    """When it was first asked, or decided; ISO 8601."""
    kind: _Kind = "pending"
    """What has become of it."""

    @property
    def label(self) -> str:
        """Argument of `approve`; the name alone is enough if only one study has it."""
        return f"{self.study.name}-{self.study.fingerprint[:_SHOWN]}"


@dataclass(frozen=True)
class Decision:
    """What a person at this site has decided about a study."""

    answer: Literal["yes", "no", "undecided"]
    reason: str = ""
    """What the person wrote for the server with a no."""


def decision(state_dir: Path, study: StudyConfig) -> Decision:
    """What a person has decided about exactly this study."""
    refused = _path(state_dir, "refused", study)
    if refused.exists():
        return Decision("no", _reason(refused))
    approved = _path(state_dir, "approved", study).exists()
    return Decision("yes" if approved else "undecided")


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
    if path.exists():
        return
    noted = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    for oldest in noted[: max(0, len(noted) - _MOST_PENDING + 1)]:
        oldest.unlink(missing_ok=True)
    write_atomically(path, _text(study, asked=now.isoformat(timespec="seconds")))
    log.event(
        f"study {study.name} waits for a person here: `consilium-site pending` shows it, `consilium-site approve` "
        "approves or refuses it"
    )


def pending(state_dir: Path) -> list[Pending]:
    """Studies that wait, the longest waiting first. A file that was edited is passed over."""
    return [one for one in _all(state_dir, "pending") if decision(state_dir, one.study).answer == "undecided"]


def decided(state_dir: Path) -> list[Pending]:
    """Studies that a person has approved or refused, the latest decision first."""
    known = [*_all(state_dir, "approved"), *_all(state_dir, "refused")]
    return sorted(known, key=lambda one: one.asked, reverse=True)


def end(state_dir: Path, study: StudyConfig) -> None:
    """An approval that was used up: from now on the study needs another one."""
    _path(state_dir, "approved", study).unlink(missing_ok=True)


def find(state_dir: Path, wanted: str, *, refuse: bool = False) -> Pending:
    """The study with this name or label that can be approved, or refused. Raises ConfigError.

    A pending study comes first. A study that was refused can be approved after all, and an approval can be
    taken back.
    """
    waiting = pending(state_dir)
    decided = _all(state_dir, "approved" if refuse else "refused")
    for studies in (waiting, decided):
        meant = [one for one in studies if wanted in (one.study.name, one.label)]
        if len(meant) == 1:
            return meant[0]
        if meant:
            break
    if not waiting and not decided:
        raise ConfigError(f"no study {wanted!r} waits here; one waits once the server has asked for it")
    listed = ", ".join(one.label for one in waiting) or "nothing"
    former = f"; {'approved' if refuse else 'refused'}: " + ", ".join(one.label for one in decided)
    raise ConfigError(
        f"found {len(meant)} studies named {wanted!r}; waiting: {listed}{former if decided else ''}. "
        "Name one of these."
    )


def approve(state_dir: Path, meant: Pending, *, by: str, now: datetime) -> None:
    """Approve this study, in the name of `by`. Raises StorageError."""
    _decide(state_dir, "approved", meant, {"approved": now.isoformat(), "by": by})


def refuse(state_dir: Path, meant: Pending, *, by: str, now: datetime, reason: str = "") -> None:
    """Refuse this study, in the name of `by`; the server gets `reason`. Raises StorageError."""
    about = {"refused": now.isoformat(timespec="seconds"), "by": by, "reason": reason}
    _decide(state_dir, "refused", meant, about)


def require_reason(reason: str) -> None:
    """Raises ConfigError if this text cannot be sent to the server."""
    if len(reason) > LONGEST_NO or not reason.isprintable():
        raise ConfigError(
            f"the reason has {len(reason)} characters, expected one line of at most {LONGEST_NO}; shorten it"
        )


def describe(one: Pending) -> str:
    """What a person should know before approving a study."""
    return "\n".join(
        [f"{one.label}: {_TIMES[one.kind]} {one.asked}", *(f"  {line}" for line in lines(one.study))]
    )


def _decide(state_dir: Path, kind: _Kind, meant: Pending, about: dict[str, str]) -> None:
    """Write the decision and remove what stood before it. With two files, as after a power cut, a no counts."""
    write_atomically(_path(state_dir, kind, meant.study), _text(meant.study, **about))
    others: tuple[_Kind, ...] = ("pending", "approved", "refused")
    for other in others:
        if other != kind:
            _path(state_dir, other, meant.study).unlink(missing_ok=True)


def _folder(state_dir: Path, kind: _Kind) -> Path:
    return state_dir / "approvals" / kind


def _path(state_dir: Path, kind: _Kind, study: StudyConfig) -> Path:
    return _folder(state_dir, kind) / f"{study.name}-{study.fingerprint}.json"


def _text(study: StudyConfig, **about: str) -> bytes:
    return json.dumps(about | {"study": study.model_dump(mode="json")}, indent=1).encode()


def _all(state_dir: Path, kind: _Kind) -> list[Pending]:
    """Studies of this kind, the oldest first. A file that cannot be read is named and passed over."""
    studies = []
    for path in sorted(_folder(state_dir, kind).glob("*.json")):
        try:
            studies.append(_read(path, kind))
        except StorageError as error:
            if kind == "pending":  # of decided studies, those of earlier versions stay as a record
                log.warn(str(error))
    return sorted(studies, key=lambda one: (one.asked, one.label))


def _reason(refused: Path) -> str:
    """The reason in the file of a refusal; none in a damaged one, which is a refusal all the same."""
    try:
        return str(_content(refused).get("reason", ""))
    except StorageError:
        return ""


def _content(path: Path) -> dict[str, object]:
    try:
        content = json_text.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path) from error
    if not isinstance(content, dict):
        raise _unreadable(path)
    return content


def _read(path: Path, kind: _Kind) -> Pending:
    """The study in a file. Raises StorageError if the file was edited: it is then another study."""
    content = _content(path)
    try:
        one = Pending(StudyConfig.model_validate(content["study"]), str(content[_TIMES[kind]]), kind)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise _unreadable(path) from error
    if path.stem != f"{one.study.name}-{one.study.fingerprint}":
        raise StorageError(
            f"{path} was edited, or written by another version, and is another study than its name says; remove it, "
            "and the study will ask again"
        )
    return one


def _unreadable(path: Path) -> StorageError:
    return StorageError(f"{path} cannot be read as a study; remove it, and the study will ask again")
