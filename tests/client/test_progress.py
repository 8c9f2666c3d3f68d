import io
import logging
import sys
from collections.abc import Callable

import pytest

from client.progress import shown
from common import log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def clock(step_s: float) -> Callable[[], float]:
    """Says 0, then `step_s` more each time it is asked."""
    times = iter(range(10**6))
    return lambda: next(times) * step_s


def test_on_a_terminal_a_bar_is_drawn_over_itself_and_gone_in_the_end(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with caplog.at_level(logging.INFO, "consilium"):
        assert list(shown("abcd", 4, "images decoded", clock=clock(30))) == list("abcd")
    first, second, *_, last = sys.stderr.getvalue().split("\r\x1b[K")[1:]
    # One image in 30 s, so the other three take 90 s.
    assert first == "[######..................] 1 of 4 images decoded, 1 min 30 s left"
    assert second == "[############............] 2 of 4 images decoded, 1 min 00 s left"
    assert last == ""
    assert caplog.text == ""


@pytest.mark.parametrize("where", ["pipe", "json"])
def test_elsewhere_a_line_is_logged_every_five_seconds(where, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", Terminal() if where == "json" else io.StringIO())
    if where == "json":
        log.start("json")
        log.logger.propagate = True
    with caplog.at_level(logging.INFO, "consilium"):
        list(shown(range(8), 8, "images read", clock=clock(2)))
    # After 2, 4, 6, ... 16 s: the third and the sixth are 5 s or more after the one before.
    assert [record.message for record in caplog.records] == ["3 of 8 images read", "6 of 8 images read"]
    assert "\r" not in sys.stderr.getvalue()


def test_the_bar_is_gone_after_an_error_too(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ZeroDivisionError):
        list(shown((1 // (2 - n) for n in range(4)), 4, "images decoded", clock=clock(1)))
    assert sys.stderr.getvalue().endswith("\r\x1b[K")
