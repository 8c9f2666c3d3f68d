"""One folder per class, with or without train and test folders above them.

Folders inside a class folder are searched. A pattern over the path may name the patient, as most hospitals'
file names or folders can. What is not used is named: loose images, empty folders, files that are no images.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.config import FoldersData
from client.data.manifest import SIDES, ImageRow
from client.data.readers.patients import named
from client.data.readers.rows import ReadRows, Unused
from client.data.readers.scan import beside_folders, folders_in, merged, scan
from client.data.references import PictureFile
from common.errors import SiteDataError

_EMPTY = "folders without an image"
_LIKE_A_SIDE = re.compile(
    r"(?:train(?:ing)?|trn|val(?:id(?:ation)?)?|dev|test(?:ing)?|tst|eval(?:uation)?|hold-?out)"
    r"(?:[ _-]?(?:sets?|data|images?|imgs|split|files))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ClassFolders:
    """The class folders of a data set, and what lies beside them."""

    folders: tuple[tuple[Path, str | None], ...]
    """Each with the side of the split whose folder it lies in."""
    problems: tuple[str, ...]
    unused: tuple[Unused, ...]


def read_folders(config: FoldersData) -> ReadRows:
    """Rows in the order of their names. Raises SiteDataError if the folder is not there."""
    root = config.root
    if not root.is_dir():
        raise SiteDataError(f"{root} is not a folder; point data.root at one folder per class")
    layout = class_folders(root)
    rows: list[ImageRow] = []
    parts: list[tuple[str, Sequence[Unused]]] = [("", layout.unused)]
    for folder, split in layout.folders:
        inside = scan(folder)
        home = folder.relative_to(root).as_posix()
        parts.append((home, inside.unused))
        if not inside.images:
            parts.append(("", [Unused(_EMPTY, (home,))]))
        # macOS stores accents apart from their letters; the class of a study has them together.
        label = unicodedata.normalize("NFC", folder.name)
        for path in inside.images:
            source = path.relative_to(root).as_posix()
            rows.append(ImageRow(PictureFile(path), label, group=None, split=split, source=source))
    unused = merged(parts)
    if config.group is not None:
        rows, unmatched = _grouped(rows, config.group.pattern)
        unused += unmatched
    return ReadRows(rows, list(layout.problems), unused)


def class_folders(root: Path) -> ClassFolders:
    """The class folders under `root`, with the train or test folder that each lies in."""
    folders = folders_in(root)
    sides = [folder for folder in folders if folder.name.lower() in SIDES]
    parts = [("", beside_folders(root))]
    if not sides:
        found_sides = tuple(_misplaced_sides(folders))
        return ClassFolders(tuple((folder, None) for folder in folders), found_sides, tuple(merged(parts)))
    others = [folder.name for folder in folders if folder not in sides]
    problems = []
    if others:
        problems.append(
            f"{', '.join(side.name for side in sides)} lie(s) beside {', '.join(others)}: expected folders of "
            f"classes only, or of sides ({', '.join(SIDES)}) only; move or rename the others"
        )
    found = []
    for side in sides:
        parts.append((side.name, beside_folders(side)))
        found += [(folder, side.name.lower()) for folder in folders_in(side)]
    return ClassFolders(tuple(found), tuple(problems), tuple(merged(parts)))


def _misplaced_sides(folders: Sequence[Path]) -> Iterator[str]:
    """Problems: folders that would be classes, and are called like sides of a split or hold folders called so."""
    alike = [folder.name for folder in folders if _LIKE_A_SIDE.fullmatch(folder.name)]
    if len(alike) > 1 or (alike and len(alike) == len(folders)):
        yield (
            f"{', '.join(alike)} seem to be sides of a split, and would be classes: expected the names "
            f"{', '.join(SIDES)}; rename them"
        )
    for folder in folders:
        inside = [path.name for path in folders_in(folder) if _LIKE_A_SIDE.fullmatch(path.name)]
        if len(inside) > 1:
            yield (
                f"{folder.name} would be a class, and holds {', '.join(inside)}, which seem to be sides of a split: "
                "expected the sides first and the classes in them, such as train/benign; move them, or point data.root "
                f"at {folder.name} if the classes lie in its sides"
            )


def _grouped(rows: Sequence[ImageRow], pattern: str) -> tuple[list[ImageRow], list[Unused]]:
    """Rows with the patient that the pattern finds in their path, and the paths in which it finds none."""
    expression = re.compile(pattern)
    without: list[str] = []
    patients = []
    for row in rows:
        match = expression.search(row.source)
        if match is None:
            without.append(row.source)
        patients.append(match and (match[1] if expression.groups else match[0]))
    grouped, unknown = named(rows, patients, "patient")
    if without:
        unknown.append(
            Unused(
                "paths in which data.group.pattern finds no patient",
                tuple(without),
                what="taken as of no known patient",
            )
        )
    return grouped, unknown
