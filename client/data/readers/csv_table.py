"""A csv with one line per image, as most hospitals have one or can make one.

Rows that `row_filter` leaves out belong to other sites and are not read.
"""

from collections.abc import Sequence

from client.config import CsvData
from client.data.manifest import ImageRow
from client.data.readers.lookup import ImageFinder
from client.data.readers.patients import Kind, named
from client.data.readers.rows import ReadRows, Unused
from client.data.readers.subgroups import attributes, subgroup_columns
from client.data.readers.table import CsvTable, of_other_sites, read_table, rows_of
from client.data.references import BadImage, PictureFile
from common.errors import SiteDataError

_KINDS: tuple[Kind, ...] = ("patient", "lesion", "group")
_NO_LABEL = frozenset({"", "nan", "n/a", "#n/a", "<na>", "null"})
"""What programs write where nothing stands."""


def read_csv(config: CsvData) -> ReadRows:
    """Rows, problems and unused images. Raises SiteDataError if the columns are not there."""
    table = read_table(config.labels)
    _require_columns(table, config)
    finder = ImageFinder((config.image_folder,))
    columns = config.columns
    rows: list[ImageRow] = []
    problems = list(table.problems)
    cells_of_rows: list[dict[str, str]] = []
    chosen = list(rows_of(table, config.row_filter))
    for number, cells in chosen:
        source = f"{table.path.name} row {number}"
        label = cells.get(columns.label, "")
        has_label = label.casefold() not in _NO_LABEL or label in config.label_map
        if not has_label:
            problems.append(f"{source}: no label")
        if not (name := cells.get(columns.image, "")):
            problems.append(f"{source}: no image file")
            continue
        try:
            path = finder.find(name)
        except BadImage as bad:
            problems.append(f"{source}: {bad}")
            continue
        if has_label:
            split, acquisition = (_cell(cells, column) for column in (columns.split, columns.acquisition))
            known = attributes(cells, config)
            rows.append(
                ImageRow(
                    PictureFile(path), label, None, split, source, acquisition=acquisition, attributes=known
                )
            )
            cells_of_rows.append(cells)
    rows, placeholders = _grouped(rows, cells_of_rows, config)
    numbers = {number for number, _ in chosen}
    others = [cells.get(columns.image, "") for number, cells in table.rows if number not in numbers]
    unused = [*_of_other_sites(table, numbers, config), *placeholders, *finder.unused(table.path, others)]
    return ReadRows(rows, problems, unused)


def _of_other_sites(table: CsvTable, numbers: set[int], config: CsvData) -> list[Unused]:
    chosen = config.row_filter
    return [] if chosen is None else of_other_sites(table, numbers, chosen.column, chosen.values)


def _grouped(
    rows: list[ImageRow], cells_of_rows: Sequence[dict[str, str]], config: CsvData
) -> tuple[list[ImageRow], list[Unused]]:
    placeholders: list[Unused] = []
    for kind in _KINDS:
        if column := getattr(config.columns, kind):
            rows, unknown = named(rows, [cells.get(column) for cells in cells_of_rows], kind)
            placeholders += unknown
    return rows, placeholders


def _require_columns(table: CsvTable, config: CsvData) -> None:
    wanted = {f"data.columns.{use}": name for use, name in config.columns.model_dump().items() if name}
    if config.row_filter is not None:
        wanted["data.row_filter.column"] = config.row_filter.column
    wanted |= subgroup_columns(config)
    missing = [f"{setting}={name!r}" for setting, name in wanted.items() if name not in table.header]
    if missing:
        raise SiteDataError(
            f"{table.path} has no column for {', '.join(missing)}; "
            f"it has the columns {', '.join(table.header)}. Name these in the site's YAML."
        )


def _cell(cells: dict[str, str], column: str | None) -> str | None:
    return cells.get(column, "") or None if column else None
