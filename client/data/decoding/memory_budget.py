"""Room for the pictures that are decoded at once.

What a picture takes while it is decoded is up to some 24 bytes a pixel, and as many are decoded at once
as there are threads. Ordinary ones are small and never wait here; sixteen at the limit of what is
accepted would be tens of gigabytes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

MOST_AT_ONCE = 2**26
"""Pixels; 1.5 GiB at the worst. A larger picture waits until it is alone."""

_change = threading.Condition()
_taken = 0


@contextmanager
def room(num_pixels: int) -> Iterator[None]:
    """To be held while a picture of so many pixels is decoded."""
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
