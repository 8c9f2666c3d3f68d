"""Studies that wait for the server, in the order in which they were asked for.

One file a study, named by the moment it was asked for: a new study is a whole YAML, a study to go on with
is an empty file. The one that runs lies in `running/` until it is over, so a server that was killed
knows what to go on with.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from common.config import StudyConfig
from common.errors import ConfigError
from common.files import write_atomically
from common.settings import to_yaml
from server.deployment.folder import ServerFolder
from server.storage import checkpoint, status

NEW, RESUME = ".yaml", ".resume"


@dataclass(frozen=True)
class Entry:
    """One study that waits or runs."""

    path: Path

    @property
    def name(self) -> str:
        """Of the study."""
        return self.path.name.removesuffix(self.path.suffix).partition("-")[2]

    @property
    def is_new(self) -> bool:
        """False for a study that goes on from its last checkpoint."""
        return self.path.suffix == NEW


def waiting(folder: ServerFolder) -> list[Entry]:
    """Studies that wait, the next one first."""
    return _entries(folder.root / "queue")


def running(folder: ServerFolder) -> Entry | None:
    """The study that runs, or would if the server did."""
    return next(iter(_entries(folder.root / "running")), None)


def latest(folder: ServerFolder) -> str | None:
    """The study that runs, or ran last; None before any."""
    if (now := running(folder)) is not None and (folder.runs / now.name).exists():
        return now.name
    runs = sorted(folder.runs.glob("*/status.json"), key=lambda path: path.stat().st_mtime)
    return runs[-1].parent.name if runs else None


def put(folder: ServerFolder, study: StudyConfig) -> Entry:
    """Let `study` wait for its turn. Raises ConfigError if one of its name does already."""
    _require_unknown(folder, study.name)
    path = folder.root / "queue" / f"{time.time_ns()}-{study.name}{NEW}"
    write_atomically(path, to_yaml(study.model_dump(mode="json")))
    return Entry(path)


def put_back(folder: ServerFolder, name: str) -> Entry:
    """Let a study that broke off or was stopped go on. Raises ConfigError if it cannot."""
    _require_unknown(folder, name)
    require_run(folder, name)
    now = status.read_status(folder.runs / name)
    if now is not None and now.status == "finished":
        raise ConfigError(f"study {name} is finished ({now.reason}); nothing of it is left to be done")
    if checkpoint.latest(folder.runs / name) is None:
        raise ConfigError(
            f"{folder.runs / name} has no checkpoint to go on from; run the study again from its start"
        )
    path = folder.root / "queue" / f"{time.time_ns()}-{name}{RESUME}"
    write_atomically(path, b"")
    return Entry(path)


def require_run(folder: ServerFolder, name: str) -> None:
    """Raises ConfigError if no study of this name has begun here."""
    if (folder.runs / name).is_dir():
        return
    if any(entry.name == name for entry in waiting(folder)):
        raise ConfigError(f"study {name} has not begun: it waits for its turn")
    known = sorted(path.parent.name for path in folder.runs.glob("*/status.json"))
    there = f"there are {', '.join(known)}" if known else "none has yet"
    raise ConfigError(f"no study {name} has run in {folder.root}; {there}")


def begin(folder: ServerFolder, entry: Entry) -> Entry:
    """Its turn has come."""
    path = folder.root / "running" / entry.path.name
    path.parent.mkdir(exist_ok=True)
    return Entry(entry.path.rename(path))


def end(entry: Entry) -> None:
    """It is over."""
    entry.path.unlink(missing_ok=True)


def _entries(place: Path) -> list[Entry]:
    files = [
        path
        for path in place.glob("*-*")
        if path.suffix in (NEW, RESUME) and path.name.partition("-")[0].isdecimal()
    ]
    return [Entry(path) for path in sorted(files, key=lambda path: int(path.name.partition("-")[0]))]


def _require_unknown(folder: ServerFolder, name: str) -> None:
    now = running(folder)
    if now is not None and now.name == name:
        raise ConfigError(f"a study {name} is running; wait, `consilium-server stop` it, or rename yours")
    if any(entry.name == name for entry in waiting(folder)):
        raise ConfigError(f"a study {name} is waiting already; rename yours")
