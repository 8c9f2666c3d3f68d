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


def test_on_a_terminal_a_bar_is_drawn_that_is_gone_in_the_end(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with caplog.at_level(logging.INFO, "consilium"):
        assert list(shown("abcd", 4, "images decoded")) == list("abcd")
    drawn = sys.stderr.getvalue().split("\r")
    assert "images decoded" in drawn[1]
    assert "0/4" in drawn[1]
    assert drawn[-2:] == [" " * len(drawn[-2]), ""]  # wiped, and back at the start of the line
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
        list(shown((1 // (2 - n) for n in range(4)), 4, "images decoded"))
    assert sys.stderr.getvalue().split("\r")[-2].strip() == ""
