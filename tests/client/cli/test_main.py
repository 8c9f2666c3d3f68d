"""`consilium-site` as it is typed."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from client.cli.main import app, main

ROOT = Path(__file__).parents[3]
COMMANDS = sorted(typer.main.get_command(app).commands)


def test_the_commands_are_the_ones_that_scripts_know() -> None:
    assert set(COMMANDS) == {
        "key",
        "check",
        "check-connection",
        "egress",
        "mounts",
        "way-out",
        "trainer",
        "gateway",
        "status",
        "pending",
        "approve",
        "audit",
        "console",
        "mask-key",
        "predict",
        "export",
        "merge",
        "embed-prompts",
        "fetch-weights",
        "import-weights",
        "check-encoders",
        "split",
        "simulate",
        "partition",
    }


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_there_at_once_without_torch_or_pydantic(command: str | None) -> None:
    code = (
        "import sys; from client.cli.main import main\n"
        "code = main()\n"
        "print({'torch', 'pydantic', 'flwr'} & sys.modules.keys(), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *([command] if command else []), "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: consilium-site ")
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_its_parts_mean_and_gives_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "\nExamples:\n  consilium-site " in text
    assert f" {command} " in text.partition("Examples:")[2]
    assert "\x1b" not in text
    assert text.isascii()  # no box
    described = [line for line in text.splitlines() if line.startswith("  ") and "consilium-site" not in line]
    assert all(len(line.split("  ", 2)) == 3 for line in described), described


def test_without_a_command_the_usage_is_shown_and_the_code_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: consilium-site" in capsys.readouterr().err
