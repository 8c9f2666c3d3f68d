"""Inspection of one image: its size, channels, contrast, hashes and burned-in text.

Everything comes from one decoding at the size that training keeps, so that the time it took is the time that
training will need.
"""

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, assert_never

import numpy as np
from PIL import Image

from client.data import duplicates
from client.data.decoding import burned_in_text, decode, dicom
from client.data.manifest import ImageRow
from client.data.references import BadImage, DicomFrame, ImageReference, NiftiSlice, NpzEntry, PictureFile

if TYPE_CHECKING:
    from pydicom import Dataset

Text: TypeAlias = Literal["none", "declared", "suspected"]
"""Burned-in text: no sign of it, declared in the file, or suspected from the picture."""

_SMALL = 64
_FEW_COLOURS = 8
"""As many as a mask of seven structures and their ground has; a picture has hundreds."""
_LAST_PART, _FILLED_IN = 20, (128, 128, 128)
_COLOURLESS = 8
"""Most that channels of a grey picture differ; JPEG's own colours are no purer."""


@dataclass(frozen=True)
class InspectedImage:
    """Properties of one image. With a problem, the other fields mean nothing."""

    row: ImageRow
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    """Columns and rows of the whole image."""
    kind: str = ""
    """Channels and depth, e.g. `RGB`, `I;16`, `12-bit MONOCHROME2`."""
    spread: float = 0.0
    """Largest standard deviation of a channel, of 255."""
    looks_like_a_mask: bool = False
    """Whether it has as few colours as a mask, and no picture, has."""
    ends_in_grey: bool = False
    """Whether its last rows are the grey that a decoder fills in where a JPEG was cut off."""
    digest: str = ""
    fingerprint: int = 0
    text: Text = "none"
    decode_s: float = 0.0

    @property
    def where(self) -> str:
        """The row that names the image, and the image's name, for a person."""
        return f"{self.row.source} ({self.row.image.name})"


def inspect(row: ImageRow, size: int) -> InspectedImage:
    """Open and decode one image, to a square of `size`."""
    started = time.perf_counter()
    try:
        picture = decode.load(row.image, size)
        square = decode.square(picture, size, "bilinear")
        decode_s = time.perf_counter() - started
        whole_size, kind, text = _stored(row.image, picture)
        digest = _digest(row.image, square)
    except OSError as error:
        return InspectedImage(row, problem=f"cannot be read ({error.strerror or type(error).__name__})")
    except BadImage as bad:
        return InspectedImage(row, problem=str(bad))
    # Made small, so that a blank sensor's noise averages out.
    small = np.asarray(Image.fromarray(square).resize((_SMALL, _SMALL), Image.Resampling.BOX))
    if kind == "RGB" and int(np.ptp(small, axis=2).max()) <= _COLOURLESS:
        kind = "RGB without colour"
    spread = float(small.std(axis=(0, 1)).max())
    return InspectedImage(
        row,
        "",
        whole_size,
        kind,
        spread,
        picture.getcolors(_FEW_COLOURS) is not None,
        _ends_in_grey(row.image, picture),
        digest,
        duplicates.fingerprint(small),
        text,
        decode_s,
    )


def _ends_in_grey(reference: ImageReference, picture: Image.Image) -> bool:
    """Whether the last twentieth of a picture is one grey, and the rest is not."""
    if not isinstance(reference, PictureFile):
        return False
    width, height = picture.size
    last = picture.crop((0, height - max(1, height // _LAST_PART), width, height))
    return last.getcolors(1) == [(last.width * last.height, _FILLED_IN)] and picture.getcolors(1) is None


def _stored(reference: ImageReference, picture: Image.Image) -> tuple[tuple[int, int], str, Text]:
    """Size, channels and depth as they are stored, and whether text is burned in."""
    match reference:
        case PictureFile(path):
            with Image.open(path, formats=decode.FORMATS) as image:
                return image.size, image.mode, "none"
        case DicomFrame(path):
            header = dicom.read_header(path)
            bits, colours = (_attribute(header, name) for name in ("BitsStored", "PhotometricInterpretation"))
            kind = f"{bits}-bit {colours}"
            declared = _attribute(header, "BurnedInAnnotation")
            if declared is not None and declared.upper() == "YES":
                return picture.size, kind, "declared"
            # What cannot be read declares nothing, and nothing to the contrary either.
            is_suspect = declared is None or burned_in_text.looks_written_on(picture)
            return picture.size, kind, "suspected" if is_suspect else "none"
        case NiftiSlice() | NpzEntry():
            return picture.size, "", "none"
        case _:
            assert_never(reference)


def _attribute(header: "Dataset", keyword: str) -> str | None:
    """Its text, empty if it is not there; None if it cannot be read."""
    try:
        return str(header.get(keyword, "")).strip()
    except Exception:  # pydicom converts a value when it is read, and a broken one raises nearly anything
        return None


def _digest(reference: ImageReference, square: decode.Pixels) -> str:
    if isinstance(reference, PictureFile):
        return hashlib.sha256(reference.path.read_bytes()).hexdigest()
    return hashlib.sha256(square.tobytes()).hexdigest()  # a part of a file is compared by what it shows
