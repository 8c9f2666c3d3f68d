"""ISIC 2018 Task 3 and ISIC 2019 as the challenges publish them, and Fed-ISIC2019's centres.

The ground truth is a table with a column per class and a 1 under the right one. Classes in the
order of the columns: 2018 MEL, NV, BCC, AKIEC, BKL, DF, VASC (10,015 training images, those of
HAM10000); 2019 MEL, NV, BCC, AK, BKL, DF, VASC, SCC, UNK (25,331 training images, none of them
UNK). Groups are the lesions of the metadata, where it knows them: 2,084 images of 2019 have none.

Codella et al. 2019, arXiv:1902.03368; Tschandl et al. 2018; Combalia et al. 2019,
arXiv:1908.02288; CC BY-NC 4.0. Fed-ISIC2019 assigns 23,247 of these images to six centres, with
a published split: Ogier du Terrail et al. 2022, arXiv:2210.04620 (FLamby, MIT).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.config import FedIsic2019Data, IsicData, Tabled
from client.data.manifest import ImageRow
from client.data.readers.lookup import ImageFinder
from client.data.readers.patients import named
from client.data.readers.rows import ReadRows
from client.data.readers.subgroups import attributes, require_subgroups
from client.data.readers.table import CsvTable, of_other_sites, read_table, require_columns, with_values
from client.data.references import BadImage, PictureFile

ISIC2018 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
ISIC2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")


def read_isic(config: IsicData) -> ReadRows:
    """Rows, problems and unused images. Raises SiteDataError if a table or its columns are not there."""
    table = read_table(config.ground_truth)
    classes = ISIC2018 if config.kind == "isic2018" else ISIC2019
    require_columns(table, ("image", *classes), f"expected the ground truth of {config.kind}")
    return _rows(table, table.rows, classes, _metadata(config.metadata, config), config.images, split=None)


def read_fed_isic(config: FedIsic2019Data) -> ReadRows:
    """The images of one centre, each with its published fold. Raises SiteDataError."""
    table = read_table(config.split_file)
    require_columns(table, ("image", "center", "fold", *ISIC2019), "expected FLamby's split of Fed-ISIC2019")
    chosen = with_values(table, "center", (str(config.center),))
    return _rows(table, chosen, ISIC2019, _metadata(config.metadata, config), config.images, split="fold")


def _rows(
    table: CsvTable,
    numbered: Iterable[tuple[int, dict[str, str]]],
    classes: tuple[str, ...],
    metadata: Mapping[str, "_Known"],
    folder: Path,
    *,
    split: str | None,
) -> ReadRows:
    images = ImageFinder((folder,))
    rows: list[ImageRow] = []
    lesion_of_rows: list[str | None] = []
    problems = list(table.problems)
    chosen = dict(numbered)
    for number, cells in chosen.items():
        source, name = f"{table.path.name} row {number}", cells.get("image", "")
        right = [label for label in classes if _is_one(cells.get(label, ""))]
        if len(right) != 1:
            problems.append(
                f"{source}: {len(right)} classes are marked, expected one{_others(cells, classes)}"
            )
            continue
        try:
            path = images.find(name)
        except BadImage as bad:
            problems.append(f"{source}: {bad}")
            continue
        side = cells.get(split, "") if split else None
        rows.append(
            ImageRow(
                PictureFile(path),
                right[0],
                None,
                side,
                source,
                acquisition=cells.get("center"),
                attributes=metadata.get(name, _NOTHING).attributes,
            )
        )
        lesion_of_rows.append(metadata.get(name, _NOTHING).lesion)
    rows, placeholders = named(rows, lesion_of_rows, "lesion")
    # Those of other centres, and those with a problem of their own.
    others = [cells.get("image", "") for _, cells in table.rows]
    unused = [*of_other_sites(table, chosen), *placeholders, *images.unused(table.path, others)]
    return ReadRows(rows, problems, unused)


def _is_one(cell: str) -> bool:
    try:
        # 2019 has 1.0, Fed-ISIC's copy of it too, others 1; Excel saves it as 1,0 in half of Europe.
        return cell.casefold() == "true" or float(cell.replace(",", ".")) == 1.0
    except ValueError:
        return False


def _others(cells: Mapping[str, str], classes: Iterable[str]) -> str:
    """What stands under the classes, for a table of something else, such as probabilities."""
    found = [f"{label} {cells[label]}" for label in classes if cells.get(label, "") not in ("", "0", "0.0")]
    return f" with a 1 (found {', '.join(found)})" if found else " with a 1"


@dataclass(frozen=True)
class _Known:
    """What the metadata says of an image."""

    lesion: str | None
    attributes: Mapping[str, str]


_NOTHING = _Known(None, {})


def _metadata(path: Path | None, config: Tabled) -> dict[str, _Known]:
    """By image."""
    if path is None:
        return {}
    table = read_table(path)
    require_columns(table, ("image", "lesion_id"), "expected the challenge's metadata")
    require_subgroups(table, config)
    return {
        cells["image"]: _Known(cells.get("lesion_id") or None, attributes(cells, config))
        for _, cells in table.rows
        if cells.get("image")
    }
