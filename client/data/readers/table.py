"""Reader of labels.csv: one line per image.

Read as people save it: with or without a byte-order mark, separated by comma, semicolon or
tab. Row numbers are those of a spreadsheet: the header is row 1. Rows that `row_filter` leaves out
belong to other sites and are not read.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.config import Columns, CsvData, RowFilter
from client.data.manifest import ImageRow
from client.data.references import PictureFile
from common.errors import SiteDataError

MOST_BYTES = 2**28
"""A table is read whole; a million images take about a third of that."""


@dataclass(frozen=True)
class CsvTable:
    """A csv file as text."""

    path: Path
    header: tuple[str, ...]
    delimiter: str
    rows: tuple[tuple[int, dict[str, str]], ...]
    """Row number and cells by column; a row that is too short lacks its last cells."""
    problems: tuple[str, ...]
    """Rows with more cells than the header; which cell is which is not known, so they are left out."""


def read_table(path: Path) -> CsvTable:
    """A csv file with a header line. Raises SiteDataError if it cannot be read as one."""
    try:
        if path.exists() and not path.is_file():
            raise SiteDataError(f"{path} is not a file; expected a csv with a line of column names")
        if path.exists() and path.stat().st_size > MOST_BYTES:
            raise SiteDataError(
                f"{path} has {path.stat().st_size:,} bytes; expected a csv of at most {MOST_BYTES:,}"
            )
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            lines = list(csv.reader(file, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SiteDataError(f"{path} cannot be read as a csv file in UTF-8: {reason}") from error
    if not lines or not any(lines[0]):
        raise SiteDataError(f"{path} is empty; expected a line of column names, then a line per image")
    header = tuple(name.strip() for name in lines[0])
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise SiteDataError(f"{path} has the column {twice[0]!r} twice; every column needs its own name")
    numbered = [(number, cells) for number, cells in enumerate(lines[1:], start=2) if any(cells)]
    problems = tuple(
        f"{path.name} row {number}: {len(cells)} cells under {len(header)} column names"
        for number, cells in numbered
        if len(cells) > len(header)
    )
    rows = tuple(
        (number, {name: cell.strip() for name, cell in zip(header, cells, strict=False)})
        for number, cells in numbered
        if len(cells) <= len(header)
    )
    return CsvTable(path, header, delimiter, rows, problems)


def read_csv(config: CsvData) -> tuple[list[ImageRow], list[str]]:
    """Rows and problems. Raises SiteDataError if the columns are not there."""
    table = read_table(config.labels)
    _require_columns(table, config)
    chosen = list(_chosen(table, config.row_filter))
    problems = [*table.problems]
    rows = []
    for number, cells in chosen:
        source = f"{table.path.name} row {number}"
        of_row = list(_problems(cells, source, config))
        problems += of_row
        if not of_row:
            rows.append(_row(cells, source, config))
    return rows, problems


def is_file(path: Path) -> bool:
    """Whether `path` is a file; False as well for a name that no file can have, such as one of 300 letters."""
    try:
        return path.is_file()
    except OSError:
        return False


def require_columns(table: CsvTable, names: Sequence[str], what: str) -> None:
    """Raises SiteDataError if a column of a published table is not there."""
    if missing := [name for name in names if name not in table.header]:
        raise SiteDataError(
            f"{table.path} has no column {', '.join(missing)}; {what}, found the columns {', '.join(table.header)}"
        )


def with_values(table: CsvTable, column: str, values: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbered rows whose `column` holds one of `values`; without values, all. Raises SiteDataError."""
    return _chosen(table, RowFilter(column=column, values=tuple(values)) if values else None)


def _require_columns(table: CsvTable, config: CsvData) -> None:
    wanted = {f"data.columns.{use}": name for use, name in config.columns.model_dump().items() if name}
    if config.row_filter is not None:
        wanted["data.row_filter.column"] = config.row_filter.column
    missing = [f"{setting}={name!r}" for setting, name in wanted.items() if name not in table.header]
    if missing:
        raise SiteDataError(
            f"{table.path} has no column for {', '.join(missing)}; "
            f"it has the columns {', '.join(table.header)}. Name these in the site's YAML."
        )


def _chosen(table: CsvTable, row_filter: RowFilter | None) -> Iterator[tuple[int, dict[str, str]]]:
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


def _problems(cells: dict[str, str], source: str, config: CsvData) -> Iterator[str]:
    image, label = cells.get(config.columns.image, ""), cells.get(config.columns.label, "")
    if not label:
        yield f"{source}: no label"
    if not image:
        yield f"{source}: no image file"
    elif not is_file(config.image_folder / image):
        yield f"{source}: {config.image_folder / image} is not there"


def _row(cells: dict[str, str], source: str, config: CsvData) -> ImageRow:
    columns: Columns = config.columns
    return ImageRow(
        image=PictureFile(config.image_folder / cells[columns.image]),
        label=cells[columns.label],
        group=_cell(cells, columns.group),
        split=_cell(cells, columns.split),
        source=source,
        patient=_cell(cells, columns.patient),
        lesion=_cell(cells, columns.lesion),
        acquisition=_cell(cells, columns.acquisition),
    )


def _cell(cells: dict[str, str], column: str | None) -> str | None:
    return cells.get(column, "") or None if column else None
