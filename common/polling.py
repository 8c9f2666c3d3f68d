"""Polling: waiting for a state of this machine that no event reports.

A file that another program writes, a lock, the end of a child of a child: nothing wakes this process
when they change, so it checks again and again. All such waits use the two intervals below, and a
deadline that counts pauses as well as the clock, so that a test can wait without time.
"""

import time
from collections.abc import Callable

POLL_S = 0.1
"""Seconds between two looks at files, locks or processes of this machine."""

SLOW_POLL_S = 0.5
"""Seconds between two looks that cost a call to another program, such as the SuperLink."""


def wait_until(
    condition: Callable[[], bool],
    within_s: float,
    *,
    poll_s: float = POLL_S,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until `condition()` is true, at most `within_s` seconds. Returns whether it became true.

    The condition is checked at least once. It may raise, to end the wait early.
    """
    started, paused_s = time.monotonic(), 0.0
    while not condition():
        if max(time.monotonic() - started, paused_s) >= within_s:
            return False
        pause(poll_s)
        paused_s += poll_s
    return True
