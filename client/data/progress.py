"""Progress of a long pass over images, for a person who waits.

On a terminal a bar, which is removed when the work is done. Elsewhere (a service, a pipe, JSON logs) a log line
every few seconds. Neither names a file.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from common import log
from common.console import terminal

T = TypeVar("T")

_LINE_EVERY_S, _DRAW_EVERY_S = 5.0, 0.1


def shown(
    items: Iterable[T], total: int, what: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[T]:
    """`items` as they come, and meanwhile how many of `total` are `what`: "images decoded"."""
    if terminal.is_terminal(sys.stderr) and log.form() == "readable":
        yield from _with_bar(items, total, what, clock)
        return
    last = clock()
    for done, item in enumerate(items, start=1):
        yield item
        if (now := clock()) - last >= _LINE_EVERY_S:
            last = now
            log.event(f"{done} of {total} {what}", done=done, images=total)


def _with_bar(items: Iterable[T], total: int, what: str, clock: Callable[[], float]) -> Iterator[T]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # Drawn here and not by a thread of Rich: readers fork processes, which must not inherit a held lock.
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=terminal.console(sys.stderr),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        task = bar.add_task(what, total=total)
        bar.refresh()
        last = clock()
        for item in items:
            yield item
            bar.advance(task)
            if (now := clock()) - last >= _DRAW_EVERY_S:
                last = now
                bar.refresh()
