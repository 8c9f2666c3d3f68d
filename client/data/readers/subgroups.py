"""What a site's table says of an image for a study's subgroups: the cells of the columns that its YAML names."""

from collections.abc import Mapping

from client.config import Tabled
from client.data.readers.table import CsvTable
from common.errors import SiteDataError


def attributes(cells: Mapping[str, str], config: Tabled) -> dict[str, str]:
    """Cells by attribute, without those that are empty."""
    return {
        name: cell for name, attribute in config.subgroups.items() if (cell := cells.get(attribute.column))
    }


def subgroup_columns(config: Tabled) -> dict[str, str]:
    """Columns that the YAML names, by setting."""
    return {f"data.subgroups.{name}.column": one.column for name, one in config.subgroups.items()}


def require_subgroups(table: CsvTable, config: Tabled) -> None:
    """Raises SiteDataError if the table lacks a column that `data.subgroups` names."""
    missing = [
        f"{setting}={column!r}"
        for setting, column in subgroup_columns(config).items()
        if column not in table.header
    ]
    if missing:
        raise SiteDataError(
            f"{table.path} has no column for {', '.join(missing)}; it has the columns {', '.join(table.header)}. "
            "Name one of these in the site's YAML, or leave the attribute out."
        )
