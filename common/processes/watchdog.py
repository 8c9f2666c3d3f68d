"""Watchdog of a launch: ends every process of it, even those that have left their group.

Flower's SuperLink starts children in sessions of their own, which no signal to the SuperLink's
group reaches and which outlive it if it is killed. So everything that a launcher starts
carries a mark in its environment, which children inherit, and every process with the mark is
ended. Where there is no /proc to read environments from, only the groups are ended.

Run as a file, this is the launcher's watchdog: it reads from its input the groups that were
started, one a line, and `done` once the launcher has ended them itself. If the input ends
without that word, the launcher was killed: its groups are ended here and its scratch folders
removed. It uses the standard library alone, so that it starts quickly and cannot fail with another
package.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

MARK = "CONSILIUM_LAUNCH"
OWNER = "CONSILIUM_PROCESS"
"""Carries, after MARK's value and a slash, the name of the process that this one belongs to."""
GRACE_S = 5.0

_POLL_S = 0.05  # not of common.polling: Python's `-I -S` finds no module of ours
_PROC = Path("/proc")


def marked(mark: str, variable: str = MARK) -> list[int]:
    """Processes of this user that carry `mark`; zombies do not count."""
    entry = f"{variable}={mark}".encode()
    processes = []
    for folder in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                processes.append(int(folder.name))
    return processes


def end(mark: str, groups: Iterable[int], is_over: Callable[[], bool], grace_s: float = GRACE_S) -> None:
    """Ask every process with `mark` to end, and end by force what is left after `grace_s`."""
    known = list(groups)
    _signal(mark, known, signal.SIGTERM)
    until = time.monotonic() + grace_s
    while time.monotonic() < until and not (is_over() and not marked(mark)):
        time.sleep(_POLL_S)
    _signal(mark, known, signal.SIGKILL)
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until and (left := marked(mark)):  # started after the list above was read
        for process in left:
            _kill(os.kill, process, signal.SIGKILL)
        time.sleep(_POLL_S)


def end_family(mark: str, name: str) -> None:
    """End by force every process that the process `name` of a launch has left behind."""
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until and (left := marked(f"{mark}/{name}", OWNER)):
        for process in left:
            _kill(os.kill, process, signal.SIGKILL)
        time.sleep(_POLL_S)


def _signal(mark: str, groups: list[int], number: signal.Signals) -> None:
    members = marked(mark)
    for process in members:  # each once: some programs end at once at a second request
        _kill(os.kill, process, number)
    if number == signal.SIGKILL or not members:
        for group in groups:
            _kill(os.killpg, group, number)


def _kill(how: Callable[[int, int], None], target: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        how(target, number)


def main() -> None:
    """Read groups until the launcher is done, or has died."""
    mark, grace_s, groups, scratch = sys.argv[1], float(sys.argv[2]), [], sys.argv[3:]
    for line in sys.stdin:
        if line.strip() == "done":
            return
        groups.append(int(line))
    # Without /proc no end can be seen, so the grace period is waited for.
    end(mark, groups, _PROC.exists, grace_s)
    for folder in scratch:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
