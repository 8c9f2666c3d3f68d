"""Lock of a run's folder, for one writer at a time.

Two servers that write one folder would mix two studies' rounds. The kernel releases a lock when
its holder ends, however it ends, so no lock is ever left behind. The holder's name stands in the
file, for a person.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import LaunchError, StorageError
from common.polling import wait_until


@contextmanager
def held(path: Path, what: str, wait_s: float = 0.0, otherwise: str = "") -> Iterator[None]:
    """Hold the lock at `path` for `what`; wait up to `wait_s` seconds for another holder.

    Raises LaunchError if it is held, which says what to do `otherwise`, and StorageError if the disk has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not wait_until(lambda: _taken(file.fileno(), path), wait_s):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise LaunchError(
                f"{path.parent} is in use by {holder}; wait until it has ended{_otherwise(otherwise)}"
            )
        file.truncate(0)
        file.write(f"{what}, process {os.getpid()}\n")
        file.flush()
        yield


def _otherwise(advice: str) -> str:
    return f", or {advice}" if advice else ""


def _taken(descriptor: int, path: Path) -> bool:
    """True if the lock is ours now. Raises StorageError on a disk without locks, as some network disks are."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageError(
            f"{path} cannot be locked ({error.strerror}), so two programs could write there at once; choose a folder "
            "on a disk of this machine"
        ) from error
    return True


def is_held(path: Path) -> bool:
    """True while some process holds the lock at `path`."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return not _taken(file.fileno(), path)
