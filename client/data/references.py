"""References to images: where one image is stored, before it is opened.

A photograph is a file; a frame of a DICOM, a slice of three volumes and an entry of an archive
are parts of files. A reference says which part and how it is to be read, and is plain data: it
goes through splits, checks and caches, which do not depend on its kind.
Only `decode.decode` does.

`key` identifies an image and stays the same when other settings read it differently, so that a kept split
holds; `how` is what else the pixels depend on; `files` are those whose change makes another image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


class BadImage(Exception):
    """An image that cannot be used; the message says why, without a name."""


@dataclass(frozen=True)
class PictureFile:
    """A file that holds one picture: JPEG, PNG, TIFF, BMP, WebP."""

    path: Path

    @property
    def key(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def how(self) -> str:
        return ""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)


@dataclass(frozen=True)
class Window:
    """Range of a DICOM's values that becomes black to white."""

    centre: float
    width: float


@dataclass(frozen=True)
class DicomFrame:
    """One frame of a DICOM file."""

    path: Path
    frame: int
    """From 0; a file with one image has one frame."""
    window: Window | None = None
    """None: the file's own, or else the 1st to the 99th percentile of the frame."""

    @property
    def key(self) -> str:
        return f"{self.path}#{self.frame}"

    @property
    def name(self) -> str:
        return f"{self.path.name} frame {self.frame + 1}"

    @property
    def how(self) -> str:
        return "" if self.window is None else f"{self.window.centre:g}/{self.window.width:g}"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)


@dataclass(frozen=True)
class NiftiSlice:
    """One axial slice of three volumes of a head on one grid, as red, green and blue."""

    channels: tuple[Path, Path, Path]
    index: int
    """Along the third axis, from 0."""

    @property
    def key(self) -> str:
        return f"{self.channels[0].parent}#{self.index}"

    @property
    def name(self) -> str:
        return f"{self.channels[0].parent.name} slice {self.index}"

    @property
    def how(self) -> str:
        return " ".join(path.name for path in self.channels)

    @property
    def files(self) -> tuple[Path, ...]:
        return self.channels


@dataclass(frozen=True)
class NpzEntry:
    """One image of an array (N, H, W) or (N, H, W, 3) in a numpy archive."""

    path: Path
    array: str
    index: int

    @property
    def key(self) -> str:
        return f"{self.path}#{self.array}/{self.index}"

    @property
    def name(self) -> str:
        return f"{self.path.name} {self.array}[{self.index}]"

    @property
    def how(self) -> str:
        return ""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)


ImageReference: TypeAlias = PictureFile | DicomFrame | NiftiSlice | NpzEntry
