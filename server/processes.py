"""Processes of a federation on this machine: started, watched, and all of them stopped.

Each runs in a process group of its own, because Flower starts children that a signal to the
parent alone would leave behind. Output goes to one file a process. Whatever happens here,
`stop` ends every group that was started, and nothing else.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import LaunchError

_GRACE_S = 5.0
_LOOK_S = 0.1


@dataclass
class Processes:
    """The processes that this launcher started, by name."""

    logs: Path
    env: Mapping[str, str]
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str | Path]) -> None:
        """Start `command`; its output goes to logs/NAME.log."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as output:
            self._running[name] = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(self.env),
                start_new_session=True,
            )

    def run(self, command: Sequence[str | Path], deadline_s: float) -> str:
        """Run a command to its end; returns what it printed. Raises LaunchError."""
        shown = " ".join(Path(str(part)).name for part in command[:3])
        try:
            done = subprocess.run(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=dict(self.env),
                timeout=deadline_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LaunchError(f"`{shown}` did not end within {deadline_s:.0f} s") from error
        if done.returncode != 0:
            raise LaunchError(
                f"`{shown}` ended with exit code {done.returncode}: {(done.stderr or done.stdout).strip()}"
            )
        return done.stdout

    def require_alive(self) -> None:
        """Raises LaunchError that names the first process that ended, with the end of its log."""
        for name, process in self._running.items():
            if (code := process.poll()) is not None:
                raise LaunchError(f"{name} ended with exit code {code}. {self.tail(name)}")

    def wait_until(self, ready: Callable[[], bool], what: str, deadline_s: float) -> None:
        """Return when `ready()`; raises LaunchError after `deadline_s` or if a process ends."""
        end = time.monotonic() + deadline_s
        while not ready():
            self.require_alive()
            if time.monotonic() > end:
                raise LaunchError(f"{what} within {deadline_s:.0f} s; the logs in {self.logs} tell why")
            time.sleep(_LOOK_S)

    def tail(self, name: str, lines: int = 8) -> str:
        """The end of a process's log, for a message."""
        path = self.logs / f"{name}.log"
        text = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return f"Its log {path} ends:\n" + "\n".join(f"    {line}" for line in text[-lines:])

    def stop(self) -> None:
        """End every group that was started: asked first, after a grace by force."""
        for process in reversed(self._running.values()):
            _signal_group(process, signal.SIGTERM)
        end = time.monotonic() + _GRACE_S
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, end - time.monotonic()))
        for process in self._running.values():
            _signal_group(process, signal.SIGKILL)  # children may outlive their parent
            process.wait()
        self._running.clear()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def free_port() -> int:
    """A port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_taken(port: int) -> bool:
    """True if something listens on this port of loopback or the port cannot be bound."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def accepts_connections(port: int) -> bool:
    """True if something listens on this port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def flower_command(name: str) -> Path:
    """The path of one of Flower's commands, installed beside this Python."""
    return Path(sys.executable).parent / name
