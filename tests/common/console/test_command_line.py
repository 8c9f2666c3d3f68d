"""What both command lines have in common, on a program of three commands."""

import errno
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import pytest
import typer

from common.console import command_line
from common.errors import ConfigError
from common.processes.launcher import Interrupted

ROOT = Path(__file__).parents[3]

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def _keep_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


@pytest.fixture
def ran() -> list[object]:
    """What the commands were called with."""
    return []


@pytest.fixture
def run(ran: list[object]) -> Run:
    """`run("count", "3")`: the exit code of the program `tool`."""
    app = command_line.program("tool", "Counts.")

    def count(
        number: Annotated[int, typer.Argument(metavar="N", help="How far.")],
        skip: Annotated[
            list[int] | None, typer.Option("--without", metavar="N...", help="Not these.")
        ] = None,
        step: Annotated[int, typer.Option("--step", metavar="N", help="How far apart.")] = 1,
    ) -> int:
        """Count.

        From one
        to N.
        """
        ran.append((number, skip, step))
        return 0

    def fail(error: str) -> int:
        """Fail."""
        errors: dict[str, BaseException] = {
            "ours": ConfigError("two is no name"),
            "ctrl-c": KeyboardInterrupt(),
            "sigterm": Interrupted(signal.SIGTERM),
            "bug": ZeroDivisionError(),
            "other-pipe": BrokenPipeError(),
            "denied": PermissionError(errno.EACCES, "Permission denied", "/data/a\x1b.png"),
            "read-only": OSError(errno.EROFS, "Read-only file system", Path("/kit/site.key")),
            "no-file": PermissionError(errno.EPERM, "Operation not permitted"),
        }
        raise errors[error]

    def code(number: int, context: typer.Context) -> int:
        """Return a code."""
        ran.append(context.obj)
        return number

    command_line.command(app, "count", "Numbers", examples=["tool count 3", "tool count 9 --without 2 3"])(
        count
    )
    command_line.command(app, "fail", "Errors", examples=["tool fail ours"])(fail)
    command_line.command(app, "code", "Errors", examples=["tool code 3"])(code)
    return lambda *arguments: command_line.run(app, "tool", arguments)


# --- exit codes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["count", "3"], 0),
        (["code", "7"], 7),
        (["--help"], 0),
        (["count", "--help"], 0),
        (["count", "-h"], 0),
        (["--version"], 0),
        ([], 2),
        (["kount"], 2),
        (["count"], 2),
        (["count", "three"], 2),
        (["count", "3", "4"], 2),
        (["count", "3", "--stop"], 2),
        (["count", "3", "--step"], 2),
        (["fail", "ours"], 1),
        (["fail", "ctrl-c"], 130),
        (["fail", "sigterm"], 143),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_exit_code_says_how_it_ended(run: Run, arguments: list[str], code: int) -> None:
    assert run(*arguments) == code


def test_our_errors_are_one_line_and_a_bug_is_raised(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fail", "ours")
    assert capsys.readouterr().err == "ConfigError: two is no name\n"
    with pytest.raises(ZeroDivisionError):
        run("fail", "bug")
    with pytest.raises(BrokenPipeError):  # not of standard output
        run("fail", "other-pipe")


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["count", "3", "--witout", "2"], "--without"),
        (["conut", "3"], "count"),
        (["--jsno", "count", "3"], "--json"),
    ],
    ids=["option", "command", "global"],
)
def test_what_was_mistyped_is_suggested_once(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], suggestion: str
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("Did you mean") == 1
    assert f"Did you mean '{suggestion}'?" in error


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["3"], (3, None, 1)),
        (["9", "--without", "2", "3", "--step", "2"], (9, [2, 3], 2)),
        (["--without", "2", "--without", "3", "--", "9"], (9, [2, 3], 1)),
        (["--without=2", "9"], (9, [2], 1)),
        (["9", "--step", "-1"], (9, None, -1)),
        (["--step", "2", "--", "-9"], (-9, None, 2)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_list_option_takes_values_up_to_the_next_option(
    run: Run, ran: list[object], arguments: list[str], expected: tuple[object, ...]
) -> None:
    assert run("count", *arguments) == 0
    assert ran == [expected]


def test_a_list_option_needs_a_value(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("count", "9", "--without", "--step", "2") == 2
    assert "'--without' needs at least one value" in capsys.readouterr().err


def test_json_stands_before_the_command(run: Run, ran: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[str] = []
    monkeypatch.setattr("common.log.start", forms.append)
    assert run("--json", "code", "0") == run("code", "0") == 0
    assert forms == ["json", "readable"]
    assert ran == [command_line.GlobalOptions(json=True), command_line.GlobalOptions(json=False)]
    assert run("code", "0", "--json") == 2


def test_the_version_is_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("--version")
    name, version = capsys.readouterr().out.split()
    assert name == "tool"
    assert version[0].isdigit()


# --- help ------------------------------------------------------------------------------------


def test_help_in_a_pipe_is_plain_and_groups_the_commands(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = set()
    for columns in ("30", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("FORCE_COLOR", "1")
        run("--help")
        texts.add(capsys.readouterr().out)
    (text,) = texts
    assert text.startswith("Usage: tool [OPTIONS] COMMAND [ARGS]...\n\nCounts.\n\nOptions:\n")
    assert text.endswith("\nNumbers:\n  count  Count.\n\nErrors:\n  fail  Fail.\n  code  Return a code.\n")
    assert text.isascii()


def test_help_of_a_command_has_a_line_per_option_and_examples(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("count", "--help")
    assert capsys.readouterr().out == (
        "Usage: tool count [OPTIONS] N\n\n"
        "Count.\n\nFrom one to N.\n\n"
        "Arguments:\n"
        "  N  How far. [required]\n\n"
        "Options:\n"
        "  --without N...  Not these.\n"
        "  --step N        How far apart. [default: 1]\n"
        "  -h, --help      Show this message and exit.\n\n"
        "Examples:\n"
        "  tool count 3\n"
        "  tool count 9 --without 2 3\n"
    )


# --- in a process of its own -----------------------------------------------------------------

PROGRAM = """
import sys
from typing import Annotated
import typer
from common.console import command_line
app = command_line.program("tool", "Counts.")
def count(
    n: Annotated[int, typer.Argument(metavar="N", help="How far.")],
    flush: Annotated[bool, typer.Option("--flush")] = False,
) -> int:
    'Count.'
    for i in range(n):
        print(i, flush=flush)
    return 0
command_line.command(app, "count", "Numbers", examples=["tool count 3"])(count)
def again() -> int:
    'Again.'
    return 0
command_line.command(app, "again", "Numbers", examples=["tool again"])(again)
sys.exit(command_line.run(app, "tool"))
"""


def program(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", PROGRAM, *arguments]


def environment(**changes: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    return {**plain, "TERM": "xterm-256color", **changes}


def test_a_file_that_may_not_be_used_is_a_sentence_wherever_a_command_meets_it(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fail", "denied") == 1
    assert capsys.readouterr().err == "/data/a\\x1b.png cannot be used: Permission denied\n"
    assert run("fail", "read-only") == 1
    assert capsys.readouterr().err == "/kit/site.key cannot be used: Read-only file system\n"
    with pytest.raises(PermissionError):  # of no file: a fault of ours
        run("fail", "no-file")


@pytest.mark.parametrize(
    "arguments",
    [["count", "100000"], ["count", "100000", "--flush"], ["count", "3"], ["--help"], ["--version"]],
    ids=" ".join,
)
def test_a_reader_that_goes_away_ends_it_quietly(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)  # as `| head` when it has read enough
    try:
        done = subprocess.run(
            program(arguments), cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=120, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")  # 128 + SIGPIPE


@pytest.mark.parametrize("arguments", [["count", "100000"], ["count", "3"], ["--help"]], ids=" ".join)
def test_a_full_disk_below_the_output_is_a_sentence_and_not_done(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:  # full(4): every write fails as on a full disk
        done = subprocess.run(
            program(arguments), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=120, check=False
        )
    assert done.stderr.decode() == (
        "nothing more could be written: No space left on device; make room, or write elsewhere\n"
    )
    assert done.returncode == 1


def test_an_output_that_was_closed_before_the_start_is_no_fault() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *program(["count", "3"])],
        cwd=ROOT, stderr=subprocess.PIPE, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def on_a_terminal(arguments: Sequence[str], **changes: str) -> str:
    """What it prints to a terminal of 60 columns."""
    here, there = pty.openpty()
    process = subprocess.Popen(
        program(arguments), cwd=ROOT, stdout=there, stderr=there, env=environment(COLUMNS="60", **changes)
    )
    os.close(there)
    printed = b""
    try:
        while chunk := os.read(here, 65536):
            printed += chunk
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(here)
        process.wait(60)
    return printed.decode()


def test_help_on_a_terminal_has_boxes_and_colour() -> None:
    text = on_a_terminal(["count", "--help"])
    assert "╭" in text
    assert "\x1b[" in text
    assert "How far." in text
    assert "tool count 3" in text


@pytest.mark.parametrize("arguments", [["--help"], ["cuont", "3"]], ids=["help", "error"])
def test_no_color_means_no_escape_code(arguments: list[str]) -> None:
    text = on_a_terminal(arguments, NO_COLOR="1")
    assert "╭" in text
    assert "\x1b[" not in text


def test_a_dumb_terminal_gets_plain_help() -> None:
    assert on_a_terminal(["--help"], TERM="dumb").startswith("Usage: tool [OPTIONS]")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_a_script_for_completion(shell: str) -> None:
    done = subprocess.run(
        program([]), cwd=ROOT, env=environment(_TOOL_COMPLETE=f"source_{shell}"),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "_TOOL_COMPLETE" in done.stdout
    assert done.stderr == ""


def test_a_shell_gets_the_commands_that_begin_so() -> None:
    asked = environment(_TOOL_COMPLETE="complete_bash", COMP_WORDS="tool co", COMP_CWORD="1")
    done = subprocess.run(
        program([]), cwd=ROOT, env=asked, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["count"]
