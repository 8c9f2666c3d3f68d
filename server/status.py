"""`status.json`: how a study stands, for whoever started it.

The log tells the story; this file tells the end of it. It carries the process that runs the
study, so a server that died without a word is noticed and never waited for.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from common.settings import Frozen
from common.weights import write_atomically

FILE = "status.json"


class Status(Frozen):
    """How a study stands."""

    status: Literal["running", "failed", "finished"]
    reason: str
    since: datetime
    pid: int
    """Process of the ServerApp on the server's machine."""

    @property
    def is_over(self) -> bool:
        """True if nothing more will happen."""
        return self.status != "running"

    def or_died(self) -> "Status":
        """This status, or `failed` if it says `running` and its process is gone."""
        if self.is_over or _is_alive(self.pid):
            return self
        reason = "the server's process ended without a word; federation/logs/superlink.log may tell why"
        return self.model_copy(update={"status": "failed", "reason": reason})


def set_status(run_dir: Path, status: Literal["running", "failed", "finished"], reason: str) -> None:
    """Replace the status. Raises StorageError."""
    now = Status(status=status, reason=reason, since=datetime.now(UTC), pid=os.getpid())
    write_atomically(run_dir / FILE, now.model_dump_json(indent=1).encode())


def read_status(run_dir: Path) -> Status | None:
    """The status, None before the ServerApp has begun."""
    path = run_dir / FILE
    return Status.model_validate(json.loads(path.read_bytes())) if path.exists() else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's, as in a container
    return True
