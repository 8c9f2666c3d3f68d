"""Image files by the name that a table gives them, without folder and ending.

Releases of one data set differ in folders and endings, their tables in neither. The folders are
listed once: asking the disk for every name and ending takes minutes on a network drive.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from client.data.readers.folders import images_in
from common.errors import SiteDataError


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
    def told(self) -> str:
        """The folders, for a message."""
        return ", ".join(map(str, self._folders))

    @cached_property
    def _by_stem(self) -> dict[str, Path]:
        return {path.stem: path for folder in reversed(self._folders) for path in reversed(images_in(folder))}
