"""Frame of both command lines: one style of commands, help, errors and exit codes on Typer.

`consilium-site` and `consilium-server` take what they share from here: `--json`, `--version`, help in groups
with examples, and what an error means for the exit code. On a terminal Typer draws the help. In a pipe or a
file the help is plain: one line per option, never wrapped, the same whatever the terminal's width.

Exit codes: 0 done; 1 could not; 2 wrong usage; 3 a study finished but is incomplete, because a site that was to score
its final model did not; 130, 143 and 129 stopped by Ctrl-C, SIGTERM and SIGHUP; 141 the
reader of the output is gone (`| head`). The last four are 128 plus the signal's number, as shells report it.
"""

import errno
import inspect
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_args, get_type_hints

import click
import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.models import ArgumentInfo

from common import log
from common.console import terminal
from common.errors import ConsiliumError
from common.processes.launcher import Interrupted
from common.text import one_line

if TYPE_CHECKING:
    from types import ModuleType

DONE, COULD_NOT, INCOMPLETE, INTERRUPTED = 0, 1, 3, 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""What a person has to change about a file or a folder, wherever a command meets it."""

Handler: TypeAlias = Callable[..., int]
"""A command: its options in, its exit code out."""
Rows: TypeAlias = list[tuple[str, str]]

_GAP = 2


@dataclass(frozen=True)
class GlobalOptions:
    """Options that stand before the command."""

    json: bool
    """Log lines, and where a command has it its output, are JSON."""


# --- declaring a program ---------------------------------------------------------------------


def program(name: str, summary: str) -> typer.Typer:
    """An empty program; `command` adds to it."""
    app = typer.Typer(
        name=name,
        cls=_Group,
        help=summary,
        # click suggests commands itself
        suggest_commands=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            from common import release

            typer.echo(f"{name} {release.version()}")
            raise typer.Exit

    @app.callback()
    def start(
        context: typer.Context,
        json: Annotated[
            bool, typer.Option("--json", help="Log JSON lines instead of readable ones.")
        ] = False,
        _version: Annotated[
            bool,
            typer.Option(
                "--version", callback=show_version, is_eager=True, help="Show the version and exit."
            ),
        ] = False,
    ) -> None:
        context.obj = GlobalOptions(json=json)
        log.start("json" if json else "readable")

    return app


def command(
    app: typer.Typer, name: str, panel: str, *, examples: Sequence[str]
) -> Callable[[Handler], Handler]:
    """Decorator that adds a command to `app`, in the group `panel` of the help.

    The docstring is its help; the first line stands in the list of commands.
    """

    def add(handler: Handler) -> Handler:
        app.command(
            name,
            cls=_Command,
            help=_unwrapped(inspect.getdoc(handler) or ""),
            epilog="\n\n".join(["Examples:", *examples]),
            rich_help_panel=panel,
        )(handler)
        return handler

    return add


def _unwrapped(text: str) -> str:
    """Paragraphs without the line ends that the source code has."""
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in text.split("\n\n"))


# --- running it ------------------------------------------------------------------------------


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run one command of `app`; returns the exit code.

    Only what no user can cause is raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal cannot show, or of another encoding, must not end a command.
            stream.reconfigure(errors="backslashreplace")
    root = typer.main.get_command(app)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            code = _completed(root, name)
            if code is None:
                with root.make_context(name, arguments) as context:
                    code = root.invoke(context)
        finally:
            if sys.stdout is not None:  # started with it closed
                sys.stdout.flush()
    except click.exceptions.Exit as over:
        return over.exit_code
    except click.ClickException as wrong:
        _show(wrong)
        return wrong.exit_code
    except ConsiliumError as error:
        lines = f"{type(error).__name__}: {error}".splitlines()
        print("\n".join(map(one_line, lines)), file=sys.stderr)
        return COULD_NOT
    except Interrupted as interrupted:
        print("stopped; every process that was started has ended", file=sys.stderr)
        return interrupted.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # another pipe: a fault of ours
        _discard_output()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno in _CLOSED and error.filename is not None:
            print(one_line(f"{_text(error.filename)} cannot be used: {error.strerror}"), file=sys.stderr)
            return COULD_NOT
        if error.errno not in _FULL:
            raise
        _discard_output()
        print(
            f"nothing more could be written: {error.strerror}; make room, or write elsewhere", file=sys.stderr
        )
        return COULD_NOT
    return int(code or DONE)


def study_exit_code(*, finished: bool, incomplete: bool) -> int:
    """Exit code of a command that ran a study to its end."""
    return DONE if finished else INCOMPLETE if incomplete else COULD_NOT


def _completed(root: click.Command, name: str) -> int | None:
    """Answer the shell, which asks by an environment variable how to complete a line; else None."""
    variable = f"_{name}_COMPLETE".replace("-", "_").upper()
    if not (instruction := os.environ.get(variable)):
        return None
    from typer.completion import shell_complete

    return shell_complete(root, {}, name, variable, instruction)


def _show(wrong: click.ClickException) -> None:
    if terminal.is_terminal(sys.stderr):
        _rich_utils().rich_format_error(wrong)
    else:
        wrong.show()


def _reader_is_gone() -> bool:
    """True if nothing reads standard output any more (poll(2): POLLERR on the end for writing)."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # a stand-in without a descriptor
        return False
    waiting = select.poll()
    waiting.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in waiting.poll(0))


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes) else str(name)


def _discard_output() -> None:
    """Send the rest to nowhere: at exit Python writes what is left, and would complain."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


# --- help and options ------------------------------------------------------------------------


class _Command(TyperCommand):
    """A command whose list options take several values, and whose help suits its reader."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # Of arguments, click 8.5 drops the help that this Typer gives.
        hints = get_type_hints(inspect.unwrap(self.callback), include_extras=True) if self.callback else {}
        for param in self.params:
            if isinstance(param, TyperArgument):
                about = [extra for extra in get_args(hints[param.name]) if isinstance(extra, ArgumentInfo)]
                param.help = about[0].help if about else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        lists = {
            option
            for param in self.params
            if isinstance(param, click.Option) and param.multiple
            for option in param.opts
        }
        return super().parse_args(ctx, _one_value_each(args, lists, ctx))

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_help(self, ctx, formatter)


class _Group(TyperGroup):
    """The program itself, with the same help."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_help(self, ctx, formatter)


def _one_value_each(args: Sequence[str], lists: set[str], ctx: click.Context) -> list[str]:
    """`--only a b` as `--only a --only b`, which click understands. Raises UsageError without a value."""
    out: list[str] = []
    index = 0
    while index < len(args) and args[index] != "--":
        arg, first = args[index], index + 1
        index = first
        if arg not in lists:
            out.append(arg)
            continue
        while index < len(args) and not args[index].startswith("-"):
            out += [arg, args[index]]
            index += 1
        if index == first:
            raise click.BadOptionUsage(arg, f"Option {arg!r} needs at least one value.", ctx)
    return [*out, *args[index:]]


def _rich_utils() -> "ModuleType":
    from typer import rich_utils

    rich_utils.COLOR_SYSTEM = terminal.color_system()
    return rich_utils


def _write_help(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    if terminal.is_terminal():
        _rich_utils().rich_format_help(obj=command, ctx=ctx, markup_mode="rich")
        return
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    parts = [f"Usage: {usage}", command.help or ""]
    parts += [_section(title, rows) for title, rows in _sections(command, ctx).items()]
    examples = (command.epilog or "").replace("\n\n", "\n  ")
    formatter.write("\n\n".join(part for part in [*parts, examples] if part) + "\n")


def _sections(command: click.Command, ctx: click.Context) -> Mapping[str, Rows]:
    """Titles of the help with their rows: arguments, options, then commands by group."""
    sections: dict[str, Rows] = {}
    for param in command.get_params(ctx):
        if getattr(param, "hidden", False):
            continue
        title = "Arguments" if isinstance(param, click.Argument) else "Options"
        sections.setdefault(title, []).append((_names(param, ctx), _meaning(param, ctx)))
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        if not inner.hidden:
            summary = (inner.help or "").partition("\n\n")[0]
            panel = getattr(inner, "rich_help_panel", None) or "Commands"
            sections.setdefault(panel, []).append((inner.name or "", summary))
    return {title: sections[title] for title in sorted(sections, key=lambda title: title != "Arguments")}


def _names(param: click.Parameter, ctx: click.Context) -> str:
    metavar = param.make_metavar(ctx)
    if isinstance(param, click.Argument):
        return metavar
    names = ", ".join(sorted(param.opts, key=len))
    return names if isinstance(param, click.Option) and param.is_flag else f"{names} {metavar}"


def _meaning(param: click.Parameter, ctx: click.Context) -> str:
    default: Any = param.get_default(ctx, call=False)
    shown = isinstance(default, str | int | float | os.PathLike) and not isinstance(default, bool)
    notes = ["required"] if param.required else [f"default: {default}"] if shown else []
    return " ".join([str(getattr(param, "help", None) or ""), *(f"[{note}]" for note in notes)]).strip()


def _section(title: str, rows: Rows) -> str:
    width = max(len(name) for name, _ in rows) + _GAP
    return "\n".join([f"{title}:", *(f"  {name:<{width}}{meaning}".rstrip() for name, meaning in rows)])
