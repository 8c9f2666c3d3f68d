"""How far a long pass over images has come, for a person who waits.

On a terminal a bar that is drawn over itself and gone when the work is done; elsewhere (a service, a
pipe, JSON logs) a log line every few seconds. Neither names a file.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from common import log

T = TypeVar("T")

_TELL_S, _DRAW_S = 5.0, 0.1
_WIDTH = 24
_CLEAR = "\r\x1b[K"


def shown(
    items: Iterable[T], total: int, what: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[T]:
    """`items` as they come, and meanwhile how many of `total` are `what`: "images decoded"."""
    terminal = _terminal()
    started = told = clock()
    try:
        for done, item in enumerate(items, start=1):
            yield item
            now = clock()
            if now - told < (_TELL_S if terminal is None else _DRAW_S):
                continue
            told = now
            sentence = f"{done} of {total} {what}"
            if terminal is None:
                log.event(sentence, done=done, images=total)
            else:
                left_s = (now - started) * (total - done) / done
                terminal.write(f"{_CLEAR}{_bar(done, total)} {sentence}, {_duration(left_s)} left")
                terminal.flush()
    finally:
        if terminal is not None:
            terminal.write(_CLEAR)
            terminal.flush()


def _terminal() -> TextIO | None:
    return sys.stderr if sys.stderr.isatty() and log.form() == "readable" else None


def _bar(done: int, total: int) -> str:
    full = _WIDTH * done // max(total, 1)
    return f"[{'#' * full}{'.' * (_WIDTH - full)}]"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
