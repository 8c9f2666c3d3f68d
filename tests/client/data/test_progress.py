import io
import logging
import sys
from collections.abc import Callable

import pytest

from client.data.progress import shown
from common import log

ERASED = "\r\x1b[1A\x1b[2K"
"""Back to the start of the line above, and erase it (ECMA-48: CUU, EL)."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def clock(step_s: float) -> Callable[[], float]:
    """Says 0, then `step_s` more each time it is asked."""
    times = iter(range(10**6))
    return lambda: next(times) * step_s


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_on_a_terminal_a_bar_is_drawn_that_is_gone_in_the_end(monkeypatch, caplog):
    stream = terminal(monkeypatch)
    with caplog.at_level(logging.INFO, "consilium"):
        assert list(shown("abcd", 4, "images decoded", clock=clock(1))) == list("abcd")
    drawn = stream.getvalue()
    assert "images decoded" in drawn
    for count in ("0/4", "1/4", "2/4", "3/4", "4/4"):
        assert count in drawn
    assert drawn.endswith(ERASED)
    assert caplog.text == ""


def test_a_dumb_terminal_gets_lines(monkeypatch, caplog):
    stream = terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with caplog.at_level(logging.INFO, "consilium"):
        list(shown(range(4), 4, "images read", clock=clock(2)))
    assert [record.message for record in caplog.records] == ["3 of 4 images read"]
    assert stream.getvalue() == ""


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
    stream = terminal(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        list(shown((1 // (2 - n) for n in range(4)), 4, "images decoded"))
    assert stream.getvalue().endswith(ERASED)
