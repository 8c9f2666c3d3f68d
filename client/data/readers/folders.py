"""One folder per class, with or without train and test folders above them.

Files that are no images (a README, a thumbnail database) are passed over, folders inside a
class folder are searched, and names that start with a dot do not count.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from client.config import FoldersData
from client.data.manifest import SIDES, ImageRow
from client.data.references import PictureFile
from common.errors import SiteDataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})


def read_folders(config: FoldersData) -> tuple[list[ImageRow], list[str]]:
    """Rows in the order of their names; there is nothing that could be wrong with one."""
    if not config.root.is_dir():
        raise SiteDataError(f"{config.root} is not a folder; point data.root at one folder per class")
    rows = []
    for folder, split in class_folders(config.root):
        for path in images_in(folder):
            source = path.relative_to(config.root).as_posix()
            rows.append(ImageRow(PictureFile(path), folder.name, group=None, split=split, source=source))
    return rows, []


def class_folders(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Each class folder under `root`, and the train or test folder that it lies in."""
    folders = folders_in(root)
    if folders and all(folder.name.lower() in SIDES for folder in folders):
        for side in folders:
            yield from ((folder, side.name.lower()) for folder in folders_in(side))
    else:
        yield from ((folder, None) for folder in folders)


def folders_in(folder: Path) -> list[Path]:
    """Its folders, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """Its image files, however deep, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if _is_image(path, folder))


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


class NamedImages:
    """The image files under some folders."""

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise SiteDataError(
                    f"{folder} is not a folder; point data.images at the folder of the images"
                )
        self._folders = tuple(folders)

    def find(self, name: str) -> Path | None:
        """The file of this name, or None. `ISIC_1` finds `ISIC_1.jpg` and ISIC 2019's `ISIC_1_downsampled.jpg`."""
        for stem in (name, f"{name}_downsampled", name.removesuffix("_downsampled")):
            if stem in self._by_stem:
                return self._by_stem[stem]
        return None

    @property
    def description(self) -> str:
        """The folders, for a message."""
        return ", ".join(map(str, self._folders))

    @cached_property
    def _by_stem(self) -> dict[str, Path]:
        return {path.stem: path for folder in reversed(self._folders) for path in reversed(images_in(folder))}
