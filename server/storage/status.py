"""Status of a study, in `status.json`, for the program that started it and for people.

The log has the details; this file has the current state. It names the process that runs the study, so a server
that died without a message is noticed and started again.
"""

import contextlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field

from common.errors import StorageError
from common.files import read_json, write_atomically, write_json
from common.settings import Frozen
from server.state import Approvals, Progress

FILE = "status.json"


INCOMPLETE: Literal["finished, incomplete"] = "finished, incomplete"

Stage: TypeAlias = Literal[
    "starting", "running", "crashed", "stopped", "failed", "finished", "finished, incomplete"
]
"""`starting`: the launcher starts the server, for the first time or again. `crashed`: an unforeseen
error; the study can go on from its last checkpoint. `stopped`: the operator ended it, and may go on with it.
`finished, incomplete`: all rounds were done, but an `evaluate` site did not score the final model."""


class Status(Frozen):
    """Current state of a study."""

    status: Stage
    reason: str
    since: datetime
    pid: int
    """Process of the ServerApp on the server's machine; of the launcher while it is `starting`."""
    born: int | None = None
    """Start of that process, in clock ticks since boot: a later process may get the same number."""
    progress: Progress | None = None
    """None before the first round."""
    absent: dict[str, str] = Field(default_factory=dict)
    """Sites that the study names and that do not take part since its last start, each with the reason."""
    resumed_after: tuple[int, ...] = ()
    """Rounds after which the study went on from a checkpoint, once for each time."""
    approvals: Approvals | None = None
    """People that the study waits for; None when it waits for no one."""

    @property
    def is_over(self) -> bool:
        """True if nothing more will happen."""
        return self.status in ("stopped", "failed", "finished", INCOMPLETE)

    def or_died(self) -> "Status":
        """This status, or `crashed` if it is not over and its process is gone."""
        if self.status not in ("starting", "running") or _is_alive(self.pid, self.born):
            return self
        reason = "the server's process ended without a word; federation/logs/superlink.log may tell why"
        return self.model_copy(update={"status": "crashed", "reason": reason})


def set_status(run_dir: Path, status: Stage, reason: str) -> None:
    """Replace the status and keep what else is known; a study that is over waits for no one. Raises StorageError."""
    before = None
    with contextlib.suppress(StorageError):  # a damaged file is replaced
        before = read_status(run_dir)
    now = Status(
        status=status,
        reason=reason,
        since=datetime.now(UTC),
        pid=os.getpid(),
        born=_born(os.getpid()),
        progress=before.progress if before is not None else None,
        absent=before.absent if before is not None else {},
        resumed_after=before.resumed_after if before is not None else (),
    )
    if before is not None and not now.is_over:
        now = now.model_copy(update={"approvals": before.approvals})
    content = now.model_dump_json(indent=1).encode()
    try:
        write_atomically(run_dir / FILE, content)
    except StorageError:
        _write_over(run_dir / FILE, content)


def _write_over(path: Path, content: bytes) -> None:
    """Overwrite the existing file, because a full disk has no room for another one.

    A program that waits for the study must learn that it has failed. Raises StorageError if this fails, too.
    """
    try:
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror}; free some space there") from error


def set_progress(run_dir: Path, progress: Progress) -> None:
    """Save the progress of the round. On a full disk it is skipped: a study must not fail because of it."""
    _change(run_dir, progress=progress)


def set_absent(run_dir: Path, absent: Mapping[str, str]) -> None:
    """Save which sites do not take part, and why. On a full disk it is skipped, as in `set_progress`."""
    _change(run_dir, absent=dict(absent))


def add_resumption(run_dir: Path, after_round: int) -> None:
    """Save that the study goes on from the checkpoint of this round. On a full disk it is skipped."""
    before = read_status(run_dir)
    if before is not None:
        _change(run_dir, resumed_after=(*before.resumed_after, after_round))


def set_approvals(run_dir: Path, approvals: Approvals | None) -> None:
    """Save whose answers the study waits for. On a full disk it is skipped, as in `set_progress`."""
    _change(run_dir, approvals=approvals)


def _change(run_dir: Path, **fields: Any) -> None:
    before = read_status(run_dir)
    if before is not None:
        with contextlib.suppress(StorageError):
            write_json(run_dir / FILE, before.model_copy(update=fields))


def read_status(run_dir: Path) -> Status | None:
    """The status, None where no study was started. Raises StorageError."""
    return read_json(run_dir / FILE, Status)


def _is_alive(pid: int, born: int | None) -> bool:
    if (about := _stat(pid)) is not None:
        # A dead process keeps its number until its parent collects it, which Flower's does not.
        return about[0] not in ("Z", "X") and born in (None, int(about[19]))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's, as in a container
    return True


def _born(pid: int) -> int | None:
    about = _stat(pid)
    return None if about is None else int(about[19])


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from `state` on (proc(5)); None without the process or without /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the program's name before it may hold anything
