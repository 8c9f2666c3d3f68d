import io
import sys

import pytest

from common.console import terminal


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.parametrize(
    ("stream", "term", "expected"),
    [
        (Screen(), "xterm", True),
        (io.StringIO(), "xterm", False),
        (Screen(), "dumb", False),
        (Screen(), "", False),
    ],
)
def test_only_a_terminal_that_can_draw_counts(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, term: str, expected: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    assert terminal.is_terminal(stream) is expected


def test_a_program_without_standard_output_has_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert not terminal.is_terminal()


def test_a_table_has_every_cell_as_it_is_and_its_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    terminal.print_table(("site", "state"), [("north [1]", ("online", "green")), ("south", "3 of 4")])
    printed = screen.getvalue()
    assert "north [1]" in printed  # not taken for markup
    assert "\x1b[32monline" in printed
    assert "3 of 4" in printed  # numbers are not coloured
    assert len(printed.strip().splitlines()) == 4  # head, rule, two rows


def test_no_color_leaves_the_table_and_takes_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.print_table(("site",), [(("online", "green"),)])
    terminal.print_styled("fine", "green")
    assert "\x1b" not in screen.getvalue()
    assert "online" in screen.getvalue()
    assert screen.getvalue().endswith("fine\n")


def test_elsewhere_a_styled_line_is_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_styled("x" * 200, "bold red")
    assert capsys.readouterr().out == "x" * 200 + "\n"
