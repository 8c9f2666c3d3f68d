"""Memory budget for images that are decoded at the same time.

Decoding takes up to about 24 bytes a pixel, and every thread decodes an image. Ordinary images are small and
never wait here. Sixteen images of the largest accepted size would take tens of gigabytes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

MOST_AT_ONCE = 2**26
"""Pixels; 1.5 GiB at the worst. A larger image waits until it is the only one."""

_change = threading.Condition()
_taken = 0


@contextmanager
def reserved(num_pixels: int) -> Iterator[None]:
    """Reserve memory for decoding an image of `num_pixels`; waits until the budget has it."""
    global _taken
    share = min(num_pixels, MOST_AT_ONCE)
    with _change:
        _change.wait_for(lambda: _taken + share <= MOST_AT_ONCE)
        _taken += share
    try:
        yield
    finally:
        with _change:
            _taken -= share
            _change.notify_all()
