"""Output on a terminal: tables and colour for a person, plain text for everything else.

A person at a terminal gets tables that fit its width. A pipe, a file or a service gets plain lines, one per
row, without colour, boxes or wrapping, so that `grep` and a diff work. Rich is imported only on a terminal.

`NO_COLOR` (no-color.org) switches off every escape code; tables stay. A terminal that calls itself `dumb`
counts as none.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import Console

Cell = str | tuple[str, str]
"""A text, or a text and its style: ("offline", "red")."""


def is_terminal(stream: TextIO | None = None) -> bool:
    """True if a person reads `stream`, standard output by default."""
    stream = stream or sys.stdout
    return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def color_system() -> Literal["auto"] | None:
    """Rich's name for the colours to use; None without any, as `NO_COLOR` demands."""
    return None if os.environ.get("NO_COLOR") else "auto"


def console(stream: TextIO | None = None) -> "Console":
    """Rich's console on `stream`, standard output by default. Only for a terminal."""
    from rich.console import Console

    return Console(file=stream or sys.stdout, color_system=color_system(), markup=False, highlight=False)


def print_styled(text: str, style: str) -> None:
    """Print `text`, in `style` on a terminal."""
    if is_terminal():
        console().print(text, style=style, soft_wrap=True)
    else:
        print(text, flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Print a table for a person, on a terminal. What a pipe gets is the caller's to print."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else Text(*cell) for cell in row))
    console().print(table)
