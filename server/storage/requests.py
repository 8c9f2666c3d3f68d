"""What an operator asks of a study that is running: files that it looks for between two rounds.

One file a wish, so that a wish is there whole or not at all, and nothing needs a port or a lock.
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
    """Sites that were to be readmitted since the last look; each is told once."""
    wishes = sorted((run_dir / _FOLDER).glob(f"{_READMIT}*"))
    for wish in wishes:
        wish.unlink()
    return tuple(wish.name.removeprefix(_READMIT) for wish in wishes)


def ask_to_stop(run_dir: Path) -> None:
    """Let the study end now, not at its end. Raises ConfigError, StorageError."""
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is not the folder of a run; give the one that the study writes to")
    write_atomically(run_dir / _FOLDER / _STOP, b"")


def take_stop(run_dir: Path) -> bool:
    """True if the study was to be stopped since the last look."""
    wish = run_dir / _FOLDER / _STOP
    there = wish.exists()
    wish.unlink(missing_ok=True)
    return there
