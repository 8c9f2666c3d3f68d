"""How `consilium-site check` prints what it found."""

import io
import sys

import pytest

from client.cli import preflight
from client.preflight.findings import Finding

FINDINGS = (
    Finding("stops", "no image can be read"),
    Finding("look", "two files are the same", ("a.png", "b.png")),
    Finding("fine", "3 classes"),
)


def test_findings_in_a_pipe_are_plain_and_end_with_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert preflight._print_findings(FINDINGS[1:], "north") == 0
    assert capsys.readouterr().out == (
        "[worth a look] two files are the same:\n  a.png\n  b.png\n\n[fine] 3 classes\n\nnorth may take part\n"
    )
    assert preflight._print_findings(FINDINGS, "north") == 1
    assert capsys.readouterr().out.endswith("north may NOT take part until what stops it is fixed\n")


def test_findings_on_a_terminal_have_the_colour_of_their_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", screen)
    assert preflight._print_findings(FINDINGS, "north") == 1
    printed = screen.getvalue()
    # ECMA-48: 1 bold, 31 red, 33 yellow, 32 green
    assert "\x1b[1;31m[STOPS THE STUDY] no image can be read" in printed
    assert "\x1b[33m[worth a look] two files" in printed
    assert "\x1b[32m[fine] 3 classes" in printed
