"""Large pictures are decoded one at a time.

What a picture takes while it is decoded is a few times its pixels, and as many are decoded at once as
there are threads. Ordinary ones are small, so that is no matter; sixteen at the limit of what is
accepted would be tens of gigabytes.
"""

import threading
from contextlib import AbstractContextManager, nullcontext

LARGE = 2**24
"""Pixels; 4,096 x 4,096."""

_ALONE = threading.RLock()


def room(num_pixels: int) -> AbstractContextManager[object]:
    """To be held while a picture of so many pixels is decoded."""
    return _ALONE if num_pixels > LARGE else nullcontext()
