"""Look-up of the image file that a table names.

Tables are made on other machines than images: `.jpg` for `.JPG`, backslashes, another Unicode form of an accent,
or only the name without its ending. A name is looked up as it stands first. Otherwise the one file with nearly that
name is taken, and counted; two such files are a problem, because none of them is surely meant.
"""

import filecmp
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from client.data.readers.rows import Unused
from client.data.readers.scan import SUFFIXES, Scan, is_no_image, merged, scan
from client.data.readers.table import ROUNDED, ROUNDED_BY
from client.data.references import BadImage
from common.errors import SiteDataError

_SHOWN = 3
_DOWNSAMPLED = "_downsampled"
"""ISIC 2019 has some images under such a name; its tables name them with and without it."""
_DRIVE = re.compile(r"[a-z]:/")
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")
"""What an address on the web or in a store begins with; as a path it has one slash."""
_ENCODINGS = ("utf-8", "cp437", "cp850", "cp1252", "latin-1")
_QUERY = re.compile(r"[?#].*")


class ImageFinder:
    """Image files under some folders, by their paths, names, or names without ending."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Raises SiteDataError if one of the folders is not there."""
        for folder in folders:
            if not folder.is_dir():
                raise SiteDataError(
                    f"{folder} is not a folder; point data.images at the folder of the images"
                )
        self._folders = tuple(folders)
        self._used: set[Path] = set()
        self._inexact: list[str] = []
        self._copies: dict[Path, str] = {}

    def find(self, name: str) -> Path:
        """The file that `name` means. Raises BadImage that says why there is none."""
        path = self._exact(name) or self._nearest(name)
        self._used.add(path)
        return path

    def unused(self, table: Path, others: Iterable[str] = ()) -> list[Unused]:
        """What lies in the folders and was not found; `table` names the images, and is not among it.

        Without the images that `others` names: rows of other sites, for example.
        """
        inexact = tuple(self._inexact)
        used = {os.path.realpath(path) for path in (*self._used, *self._copies, *self._existing(others))}
        left = [
            path.relative_to(folder).as_posix()
            for folder, inside in zip(self._folders, self._scans, strict=True)
            for path in inside.images
            if os.path.realpath(path) not in used
        ]
        kinds = [
            Unused(f"image files that no row of {table.name} names", tuple(left)),
            Unused(
                "images whose name differs from the table's in ending, case, accents or folder",
                inexact,
                what="found nearly",
            ),
            Unused("copies, byte for byte, of an image that is used", tuple(sorted(self._copies.values()))),
        ]
        beside = merged(
            [
                ("", [other for entry in inside.unused if (other := _without_table(entry, folder, table))])
                for folder, inside in zip(self._folders, self._scans, strict=True)
            ]
        )
        return [
            *(entry for entry in kinds if entry.names),
            # A table says which files are images, and may lie among them; other files are not missed.
            *(
                replace(entry, is_usual=True, what="no images") if is_no_image(entry.kind) else entry
                for entry in beside
            ),
        ]

    @property
    def description(self) -> str:
        """The folders, for a message."""
        return ", ".join(map(str, self._folders))

    def _existing(self, names: Iterable[str]) -> Iterator[Path]:
        for name in names:
            try:
                yield self._exact(name) or self._nearest(name)
            except BadImage:
                continue

    # --- as it stands ------------------------------------------------------------------------

    def _exact(self, name: str) -> Path | None:
        return (
            next((path for folder in self._folders if is_file(path := folder / name)), None) if name else None
        )

    # --- nearly ------------------------------------------------------------------------------

    def _nearest(self, name: str) -> Path:
        wanted = PurePosixPath(_folded(name))
        if not wanted.name:
            raise BadImage("no name of an image")
        places = (
            place for read in (name, *_misread(name)) for place in self._places(PurePosixPath(_folded(read)))
        )
        for path in places:
            index = self._by_path if len(path.parts) > 1 else self._by_name
            stem = path.stem if path.suffix in SUFFIXES else path.name
            for key in dict.fromkeys(
                (path.name, stem, f"{stem}{_DOWNSAMPLED}", stem.removesuffix(_DOWNSAMPLED))
            ):
                if found := index.get(str(path.with_name(key))):
                    only = self._only(name, found)
                    if wanted.suffix in SUFFIXES or path != wanted:
                        self._inexact.append(f"{name} is {self._short(only)}")
                    return only
        elsewhere = [self._short(path) for path in self._by_name.get(wanted.name, ())]
        there = f"; there is {', '.join(elsewhere[:_SHOWN])}, which may be another image" if elsewhere else ""
        if ROUNDED.fullmatch(name.strip()):
            there = f", which {ROUNDED_BY}"
        raise BadImage(f"no image {name!r} in {self.description}{there}")

    def _places(self, wanted: PurePosixPath) -> Iterator[PurePosixPath]:
        """The path itself; of one that is absolute on the table's machine also its ends, the longest first.

        A relative path is not shortened: `b/1.jpg` is not the image that row `a/1.jpg` means. But `img/1.jpg` is
        `1.jpg` in a folder `img`.
        """
        yield wanted
        for folder in self._folders:
            home = PurePosixPath(_folded(str(folder.absolute()))).parts
            for above in range(1, len(wanted.parts)):
                if wanted.parts[:above] == home[-above:]:
                    yield PurePosixPath(*wanted.parts[above:])
        if is_url := _URL.match(str(wanted)):
            wanted = PurePosixPath(unquote(_QUERY.sub("", str(wanted))))
        if is_url or wanted.is_absolute() or _DRIVE.match(str(wanted)):
            yield from (PurePosixPath(*wanted.parts[start:]) for start in range(1, len(wanted.parts)))

    def _only(self, name: str, found: list[Path]) -> Path:
        first, *others = dict.fromkeys(found)  # folders may overlap
        if any(not _same_bytes(first, other) for other in others):
            shown = ", ".join(map(self._short, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
            raise BadImage(
                f"{len(found)} files are called {name!r}: {shown}; write the whole path in the table, "
                "or keep only the image in this folder"
            )
        self._copies |= {other: self._short(other) for other in others}
        return first

    def _short(self, path: Path) -> str:
        home = next(folder for folder in self._folders if path.is_relative_to(folder))
        return path.relative_to(home).as_posix()

    @cached_property
    def _scans(self) -> tuple[Scan, ...]:
        return tuple(scan(folder) for folder in self._folders)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Files by name, and by name without ending, in whatever folder."""
        return self._index(lambda path, _: PurePosixPath(_folded(path.name)))

    @cached_property
    def _by_path(self) -> dict[str, list[Path]]:
        return self._index(lambda path, folder: PurePosixPath(_folded(path.relative_to(folder).as_posix())))

    def _index(self, key: Callable[[Path, Path], PurePosixPath]) -> dict[str, list[Path]]:
        index: defaultdict[str, list[Path]] = defaultdict(list)
        for folder, inside in zip(self._folders, self._scans, strict=True):
            for path in inside.images:
                name = key(path, folder)
                for text in {
                    str(name),
                    str(name.with_name(name.stem)) if name.suffix in SUFFIXES else str(name),
                }:
                    index[text].append(path)
        return index


def _without_table(entry: Unused, folder: Path, table: Path) -> Unused | None:
    """The entry without the table, which the site's YAML names and which is therefore used; None if nothing is left."""
    wanted = os.path.realpath(table)
    names = tuple(name for name in entry.names if os.path.realpath(folder / name) != wanted)
    return replace(entry, names=names) if names else None


def is_file(path: Path) -> bool:
    """Whether `path` is a file; False as well for a name that no file can have, such as one of 300 letters."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def _folded(name: str) -> str:
    """One spelling for names that people and operating systems take for the same."""
    visible = "".join(sign for sign in name if unicodedata.category(sign) != "Cf")
    return unicodedata.normalize("NFC", visible.strip().replace("\\", "/")).casefold().removeprefix("./")


def _misread(name: str) -> Iterator[str]:
    """The name as it is called if a zip, a disk or the table itself was read in another encoding.

    Windows packs names into a zip as code page 437 or 850, and other programs take them for UTF-8 or Latin-1.
    """
    if name.isascii():
        return
    forms = (unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    for form, one, other in product(forms, _ENCODINGS, _ENCODINGS):
        try:
            yield form.encode(one).decode(other, "surrogateescape")
        except UnicodeError:
            continue


def _same_bytes(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)
