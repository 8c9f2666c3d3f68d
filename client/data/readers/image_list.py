"""Image list: a file that says which images of a data set are one site's, and on which side each is.

The list names images by their `key`, which every kind of data has, so that frames, slices and entries
of archives can be shared out like picture files; how they are read stays with the data. What
else stands in a line (class, patient, lesion) is for people and other programs, as the reader
gave it: a DICOM's patients are hidden there, too.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

from client.data.manifest import ImageRow
from client.data.readers.table import read_table, require_columns
from common.files import write_atomically

COLUMNS = ("image", "label", "patient", "lesion", "group", "acquisition", "split")


def write_list(path: Path, rows: Sequence[ImageRow]) -> None:
    """One line per image, in the order of `rows`. Raises StorageError."""
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        cells = (row.label, row.patient, row.lesion, row.group, row.acquisition, row.split)
        writer.writerow([_key(row.image.key), *(cell or "" for cell in cells)])
    # A file name of another encoding keeps its bytes.
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def listed(rows: Sequence[ImageRow], path: Path) -> tuple[list[ImageRow], list[str]]:
    """Rows that the list names, each with its split if the list has one, and entries that are not in the data.

    Raises SiteDataError if the file is no such list.
    """
    table = read_table(path, own=True)
    require_columns(table, ("image",), "expected a list that `consilium-site partition` wrote")
    wanted = {_key(cells.get("image", "")): (number, cells.get("split")) for number, cells in table.rows}
    taken: list[ImageRow] = []
    listed_keys: set[str] = set()
    for row in rows:
        key = _key(row.image.key)
        if key in wanted:
            listed_keys.add(key)
            _, side = wanted[key]
            taken.append(replace(row, split=side) if side else row)
    problems = [
        f"{path.name} row {number}: {key} is not among the images of the data"
        for key, (number, _) in wanted.items()
        if key not in listed_keys
    ]
    return taken, [*table.problems, *problems]


def _key(image: str) -> str:
    return os.path.normpath(image)
