"""Requests of an operator to a running study, as files that the study reads between two rounds.

One file per request, so that a request is complete or absent, and nothing needs a port or a lock.
"""

from pathlib import Path

from common.errors import ConfigError
from common.files import write_atomically

_FOLDER, _READMIT, _STOP = "wishes", "readmit-", "stop"


def ask_to_readmit(run_dir: Path, site: str) -> None:
    """Let `site`, which was set aside, take part from the next round on. Raises ConfigError, StorageError."""
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is not the folder of a run; give the one that the study writes to")
    write_atomically(run_dir / _FOLDER / f"{_READMIT}{site}", b"")


def take_readmitted(run_dir: Path) -> tuple[str, ...]:
    """Sites to readmit, requested since the last call; each is returned once."""
    requests = sorted((run_dir / _FOLDER).glob(f"{_READMIT}*"))
    for request in requests:
        request.unlink()
    return tuple(request.name.removeprefix(_READMIT) for request in requests)


def ask_to_stop(run_dir: Path) -> None:
    """Let the study stop now. Raises ConfigError, StorageError."""
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is not the folder of a run; give the one that the study writes to")
    write_atomically(run_dir / _FOLDER / _STOP, b"")


def take_stop(run_dir: Path) -> bool:
    """True if a stop was requested since the last call."""
    request = run_dir / _FOLDER / _STOP
    requested = request.exists()
    request.unlink(missing_ok=True)
    return requested
