"""How far a long pass over images has come, for a person who waits.

On a terminal a bar that is gone when the work is done; elsewhere (a service, a pipe, JSON logs) a log
line every few seconds. Neither names a file.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from common import log

T = TypeVar("T")

_TELL_S = 5.0


def shown(
    items: Iterable[T], total: int, what: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[T]:
    """`items` as they come, and meanwhile how many of `total` are `what`: "images decoded"."""
    if sys.stderr.isatty() and log.form() == "readable":
        yield from tqdm(items, what, total, leave=False, file=sys.stderr)
        return
    told = clock()
    for done, item in enumerate(items, start=1):
        yield item
        if (now := clock()) - told >= _TELL_S:
            told = now
            log.event(f"{done} of {total} {what}", done=done, images=total)
