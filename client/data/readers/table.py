"""Reader of csv tables as people save them.

With or without a byte-order mark, in UTF-8 or UTF-16, separated by comma, semicolon, tab or bar, with or without
Excel's line `sep=;`, with empty columns and rows at the end, and with cells that a formula keeps as text
(`="007"`). Any other encoding is refused with the way to save the table again: read as something else, a name with
an accent would name nothing, or another patient. Row numbers are those of a spreadsheet.
"""

import codecs
import csv
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path

from client.config import RowFilter
from client.data.readers.rows import Unused, by_kind
from common.errors import SiteDataError

_AROUND = f"{string.whitespace}\xa0\ufeff\u200b\u200e\u200f"
"""Invisible signs around a cell; Excel and web pages leave them."""
_DELIMITERS = ",;\t|"
_SEPARATOR = re.compile(r"\ufeff?[\"']?sep=(?P<delimiter>[,;\t|])[\"']?\r?\n", re.IGNORECASE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_AS_TEXT = re.compile(r"""="(?P<formula>[^"]*)"|'(?P<number>[0-9.]+)""")
"""How Excel and exports for Excel keep the zeros in front of a number, and its last digits."""
ROUNDED = re.compile(r"\d(?:[.,]\d+)?E\+\d+")
ROUNDED_BY = "a spreadsheet has rounded (1.2E+05); save the column as text"
"""What became of a long number."""
_SAMPLED, _MOST_SAMPLED = 20, 2**16
"""Rows, and characters, that show which delimiter a table has."""
_OTHER_FILES = {
    b"PK\x03\x04": "an Excel or OpenDocument workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"%PDF": "a PDF",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"<table": "a web page",
    b"\x1f\x8b": "a compressed file",
    b"<?xml": "an XML file (Excel 2003 saves such workbooks)",
    b"{\\rtf": "a text document (RTF)",
    b'{"': "a JSON file",
    b"[{": "a JSON file",
    b"PAR1": "a Parquet file",
    b"SQLite format": "a database (SQLite)",
    b"$FL2": "a data file of SPSS",
}
_SAVE_AS = (
    "Save it as csv in UTF-8 (Excel: `CSV UTF-8 (comma delimited)`; LibreOffice: `Text CSV`, character set "
    "`Unicode (UTF-8)`)"
)

_OF_OTHERS = "rows that the site's YAML leaves to other sites"

MOST_BYTES = 2**28
"""A table is read whole; a million images take about a third of that."""


@dataclass(frozen=True)
class CsvTable:
    """A csv file as text."""

    path: Path
    header: tuple[str, ...]
    """Names of the columns that have one."""
    delimiter: str
    rows: tuple[tuple[int, dict[str, str]], ...]
    """Row number and cells by column; a row that is too short lacks its last cells."""
    problems: tuple[str, ...]
    """Rows with more cells than the header; which cell is which is not known, so they are left out."""


def read_table(path: Path, *, own: bool = False) -> CsvTable:
    """A csv file with a header line; `own`: one that Consilium wrote, with names in any encoding.

    Raises SiteDataError if it cannot be read as one.
    """
    try:
        if path.exists() and not path.is_file():
            raise SiteDataError(f"{path} is not a file; expected a csv with a line of column names")
        if path.exists() and path.stat().st_size > MOST_BYTES:
            raise SiteDataError(
                f"{path} has {path.stat().st_size:,} bytes; expected a csv of at most {MOST_BYTES:,}"
            )
        text = _text(path, path.read_bytes(), "surrogateescape" if own else "strict")
        first_row, delimiter, body = _separated(text)
        lines = list(csv.reader(StringIO(body), delimiter=delimiter))
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SiteDataError(f"{path} cannot be read as a csv file: {reason}") from error
    if not lines or not any(lines[0]):
        raise SiteDataError(f"{path} is empty; expected a line of column names, then a line per image")
    header = [unicodedata.normalize("NFC", name) for name in _cells(lines[0])]
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise SiteDataError(f"{path} has the column {twice[0]!r} twice; every column needs its own name")
    numbered = [
        (number, cells)
        for number, line in enumerate(lines[1:], start=first_row + 1)
        if (cells := _without_empty_end(_cells(line)))
    ]
    problems = tuple(
        f"{path.name} row {number}: {len(cells)} cells under {len(header)} column names"
        for number, cells in numbered
        if len(cells) > len(header)
    ) + tuple(
        f"{path.name} row {number}: a cell goes on over {num_lines} lines that look like rows; a quotation mark in "
        "it is not closed"
        for number, cells in numbered
        if (num_lines := _swallowed(cells, len(header), delimiter))
    )
    rows = tuple(
        (number, {name: cell for name, cell in zip(header, cells, strict=False) if name})
        for number, cells in numbered
        if len(cells) <= len(header)
    )
    return CsvTable(path, tuple(filter(None, header)), delimiter, rows, problems)


def _cells(line: Sequence[str]) -> list[str]:
    cells = (cell.strip(_AROUND) for cell in line)
    return [
        (as_text[1] or as_text[2] or "") if (as_text := _AS_TEXT.fullmatch(cell)) else cell for cell in cells
    ]


def _without_empty_end(cells: list[str]) -> list[str]:
    """Cells up to the last that holds something: many programs end every row with a delimiter."""
    return cells[: max((place for place, cell in enumerate(cells, start=1) if cell), default=0)]


def _swallowed(cells: Sequence[str], num_columns: int, delimiter: str) -> int:
    """How many further lines one of the cells holds that have as many cells as a row; free text may have lines, too."""
    further = (line for cell in cells for line in cell.split("\n")[1:])
    return sum(line.count(delimiter) >= num_columns - 1 > 0 for line in further)


def require_columns(table: CsvTable, names: Sequence[str], what: str) -> None:
    """Raises SiteDataError if a column of a published table is not there."""
    if missing := [name for name in names if name not in table.header]:
        raise SiteDataError(
            f"{table.path} has no column {', '.join(missing)}; {what}, found the columns {', '.join(table.header)}"
        )


def with_values(table: CsvTable, column: str, values: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbered rows whose `column` holds one of `values`; without values, all. Raises SiteDataError."""
    return rows_of(table, RowFilter(column=column, values=tuple(values)) if values else None)


def rows_of(table: CsvTable, row_filter: RowFilter | None) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbered rows that the filter takes; without one, all. Raises SiteDataError if a value is not there."""
    if row_filter is None:
        yield from table.rows
        return
    seen = Counter(cells.get(row_filter.column, "") for _, cells in table.rows)
    absent = [value for value in row_filter.values if value not in seen]
    if absent:
        values = ", ".join(f"{value} ({count})" for value, count in seen.most_common(10))
        raise SiteDataError(
            f"{table.path} has no row with {row_filter.column}={', '.join(absent)}; "
            f"the column holds {values or 'nothing'}. Correct the values in the site's YAML."
        )
    yield from (
        (number, cells) for number, cells in table.rows if cells.get(row_filter.column) in row_filter.values
    )


def of_other_sites(
    table: CsvTable, chosen: Container[int], column: str = "", values: Sequence[str] = ()
) -> list[Unused]:
    """Rows whose number is not among the `chosen` ones, which `column` and its `values` chose."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    folded = {value.casefold() for value in values}
    for number, cells in table.rows:
        if number not in chosen:
            value = cells.get(column, "")
            kind = _OF_OTHERS
            if column and not value:
                kind = f"rows that name no site (column {column})"
            elif value.casefold() in folded:
                kind = f"rows with {column} {value!r}, which differs from the YAML's in large letters only"
            names[kind].append(f"{table.path.name} row {number}")
    return list(by_kind(names, (_OF_OTHERS,)))


# --- from bytes to lines ---------------------------------------------------------------------


def _text(path: Path, data: bytes, errors: str) -> str:
    """The file as text. Raises SiteDataError that says how to save it again."""
    for start, what in _OTHER_FILES.items():
        if data.removeprefix(codecs.BOM_UTF8).lstrip()[: len(start)].lower() == start.lower():
            raise SiteDataError(f"{path} is {what}, expected a csv. {_SAVE_AS}.")
    if data.startswith((*_UTF32, *_UTF16)):
        encoding = "UTF-32" if data.startswith(_UTF32) else "UTF-16"
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            raise SiteDataError(f"{path} begins like {encoding} and is cut short. {_SAVE_AS}.") from error
    _check_zero_bytes(path, data[:4096])
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise SiteDataError(
            f"{path} is not in UTF-8: line {row} has the byte 0x{data[error.start]:02X}, as tables of older programs "
            f"have. {_SAVE_AS}."
        ) from error


def _check_zero_bytes(path: Path, start: bytes) -> None:
    """Raises SiteDataError for UTF-16 without a mark, and for what is no text."""
    places = [start[first::2].count(b"\0") for first in (0, 1)]
    if sum(places) <= len(start) // 4:
        return
    if max(places) > 9 * min(places):  # the upper bytes of Latin letters
        raise SiteDataError(f"{path} holds zero bytes, like UTF-16 without its mark. {_SAVE_AS}.")
    raise SiteDataError(f"{path} is no text, but a file of another program. {_SAVE_AS}.")


def _separated(text: str) -> tuple[int, str, str]:
    """Row number of the header, the delimiter, and the text from the header on."""
    row = 1
    if stated := _SEPARATOR.match(text):
        row, text = row + 1, text[stated.end() :]
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    while text.startswith("\n"):
        row, text = row + 1, text[1:]
    if stated:
        return row, stated["delimiter"], text
    sample = text[:_MOST_SAMPLED]
    return row, max(_DELIMITERS, key=lambda delimiter: _fit(sample, delimiter)), text


def _fit(sample: str, delimiter: str) -> tuple[float, int]:
    """How well a delimiter makes columns: share of rows that have as many cells as there are names, and the names.

    A name of a column may hold another delimiter, as in `file;label;size (w, h)`.
    """
    try:
        rows = [
            row for row in islice(csv.reader(StringIO(sample), delimiter=delimiter), _SAMPLED) if any(row)
        ]
    except csv.Error:
        return 0.0, 0
    num_names = len(rows[0]) if rows else 0
    if num_names < 2:
        return 0.0, 0
    return sum(2 * (1 < len(row) <= num_names) + (len(row) == num_names) for row in rows) / len(
        rows
    ), num_names
