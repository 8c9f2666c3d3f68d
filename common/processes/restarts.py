"""Restarts of processes: which process, when, and when to give up.

A process may die once by chance. One that dies again and again has a reason, and endless restarts
would hide it. So every process may be restarted a few times within a window, each time after a
longer pause. The reason of each end is in the process's own log.
"""

import signal
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MOST, WINDOW_S = 10, 600.0
"""Restarts of one process within a window; one more, and it is given up."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0


@dataclass(frozen=True)
class Ended:
    """A process ended; it will be started again unless it is given up."""

    name: str
    how: str
    pause_s: float
    """Seconds until it is restarted."""
    number: int
    """Number of this restart within the window."""
    is_final: bool = False
    """True if it will not be restarted."""


@dataclass
class Supervision:
    """Ends and restarts of processes. Reads no clock: the caller gives the time."""

    most: int | None = MOST
    """Restarts of one process within a window; None: it is never given up."""
    longest_pause_s: float = LONGEST_PAUSE_S
    _ends: dict[str, deque[float]] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)
    _given_up: set[str] = field(default_factory=set)

    def see(self, codes: Mapping[str, int], now: float) -> list[Ended]:
        """Processes that have ended since the last call, given exit codes by name and the time in seconds."""
        news = []
        for name in sorted(codes.keys() - self._due.keys() - self._given_up):
            ends = self._ends.setdefault(name, deque())
            while ends and now - ends[0] > WINDOW_S:
                ends.popleft()
            ends.append(now)
            pause_s = min(FIRST_PAUSE_S * 2 ** min(len(ends) - 1, 16), self.longest_pause_s)
            is_final = self.most is not None and len(ends) > self.most
            ended = Ended(name, how(codes[name]), pause_s, len(ends), is_final)
            if ended.is_final:
                self._given_up.add(name)
            else:
                self._due[name] = now + pause_s
            news.append(ended)
        return news

    def due(self, now: float) -> list[str]:
        """Processes to be started now; each is named once."""
        ready = sorted(name for name, at in self._due.items() if at <= now)
        for name in ready:
            del self._due[name]
        return ready

    @property
    def given_up(self) -> frozenset[str]:
        """Processes that are not started any more."""
        return frozenset(self._given_up)


def how(code: int) -> str:
    """An exit code as the end of a sentence."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def sites_of(names: Iterable[str]) -> set[str]:
    """The sites whose trainer or gateway is among these processes."""
    return {name.rpartition("-")[0] for name in names} - {""}
