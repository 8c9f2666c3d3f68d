"""Decoding of an image's reference into the square of RGB bytes that training uses.

A file's own description is not trusted: colour modes are brought to RGB without clipping or
guessing, a camera's orientation mark is applied, and a picture that cannot be used (truncated,
tiny, huge, animated) is refused with a reason. The centre square is cut and resized in one
step, with antialiasing, which is the usual resize of the shorter side and centre crop.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from client.data.decoding import dicom, first_bytes, nifti, npz
from client.data.decoding.memory_budget import reserved
from client.data.references import BadImage, DicomFrame, ImageReference, NiftiSlice, NpzEntry, PictureFile

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Pixels = npt.NDArray[np.uint8]

SMALLEST = 8
"""Smallest accepted side in pixels; a smaller picture is a mistake."""

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
"""Whatever a file's name says (JPEG includes MPO); Pillow knows others that start a program of their own."""

MOST_SCANS = 64
"""Of a JPEG; progressive ones usually have ten."""
MOST_TILE_PIXELS = 2**24
"""Of a tile of a TIFF, which is decoded whole, whatever the size of the picture."""
_SUBFILE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH, _OTHER_PICTURES, _SAMPLE_FORMAT = (
    254,
    262,
    322,
    323,
    330,
    339,
)
_DNG_VERSION = 50706
"""Tags of a TIFF."""

_END = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""Last bytes of a file that is whole."""
_LAST_BYTES, _MANY_ZEROS = 2**16, 512

_TOO_LARGE = "has more pixels than Pillow considers safe (Image.MAX_IMAGE_PIXELS); save it smaller"

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def decode(reference: ImageReference, size: int, interpolation: Interpolation) -> Pixels:
    """The centre square of an image as (size, size, 3) uint8. Raises BadImage."""
    return square(load(reference, size), size, interpolation)


def square(image: Image.Image, size: int, interpolation: Interpolation) -> Pixels:
    """The centre square of a picture, resized. Raises BadImage."""
    with _guarded():
        return np.asarray(ImageOps.fit(image, (size, size), _RESAMPLING[interpolation]))


def square_of(picture: Image.Image, size: int, interpolation: Interpolation) -> Pixels:
    """The centre square of a picture in memory, as a file of it would give. Raises BadImage."""
    with _guarded():
        return square(to_rgb(ImageOps.exif_transpose(_checked(picture))), size, interpolation)


def load(reference: ImageReference, size: int) -> Image.Image:
    """The whole image as RGB, and a JPEG no larger than a square of `size` needs. Raises BadImage."""
    with _guarded():
        match reference:
            case PictureFile(path):
                return _upright(path, size)
            case DicomFrame():
                return to_rgb(_checked(dicom.picture(reference)))
            case NiftiSlice():
                return _checked(nifti.picture(reference))
            case NpzEntry():
                return to_rgb(_checked(npz.picture(reference)))
            case _:
                assert_never(reference)


@contextmanager
def _guarded() -> Iterator[None]:
    try:
        yield
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(_TOO_LARGE) from error
    except MemoryError as error:
        raise BadImage("takes more memory to decode than is free; save it smaller") from error
    except UnidentifiedImageError as error:
        raise BadImage(
            f"cannot be decoded, as it is none of {', '.join(FORMATS)}; save it as one of these, or leave it out"
        ) from error
    except OSError as error:
        if error.errno is not None:  # of the file system; with its text would come the whole path
            raise BadImage(
                f"cannot be read ({error.strerror}); let the trainer read it, or fetch it again"
            ) from error
        raise BadImage(f"cannot be decoded ({error}); save it again") from error
    except Exception as error:
        # Decoders answer a broken file with nearly any error there is.
        raise BadImage(f"cannot be decoded ({error or type(error).__name__}); save it again") from error


def _upright(path: Path, size: int) -> Image.Image:
    with _picture(path) as image:
        _check(image)
        _check_for_bombs(image, path)
        _check_end(image, path)
        is_inverse = _is_inverse_and_deep(image)
        # JPEG decodes to a half, quarter or eighth for little; twice the size keeps it sharp.
        image.draft(None, (2 * size, 2 * size))
        with reserved(image.width * image.height):
            rgb = to_rgb(ImageOps.exif_transpose(image))
        return ImageOps.invert(rgb) if is_inverse else rgb


def _is_inverse_and_deep(image: Image.Image) -> bool:
    """Whether 0 is white, which Pillow heeds in TIFFs of 8 bits and not in those of 16."""
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.mode.startswith("I")
        and image.tag_v2.get(_PHOTOMETRIC) == 0
    )


def _picture(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=FORMATS)
    except (UnidentifiedImageError, UserWarning) as error:
        if (kind := _what(path)) is None:
            raise
        if kind.endswith("picture"):
            raise BadImage(f"begins like {kind} and is damaged; fetch it again, or save it again") from error
        raise BadImage(_no_picture(kind)) from error
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        try:
            _check_tiff(image, path)
        except BadImage:
            image.close()
            raise
    return image


def _check_tiff(image: TiffImagePlugin.TiffImageFile, path: Path) -> None:
    """Refuse files that begin like a TIFF and mean other pixels than the first that it holds."""
    # A DICOM of a slide may begin as a TIFF does, and means its own pixels.
    if (kind := _what(path)) == "a DICOM file":
        raise BadImage(_no_picture(kind))
    tags = image.tag_v2
    is_preview = bool(tags.get(_SUBFILE, 0) & 1) and _OTHER_PICTURES in tags
    if kind == "a camera's raw file" or is_preview or _DNG_VERSION in tags:
        raise BadImage(
            "is a camera's raw file, whose first picture is a small preview; save it as TIFF, PNG or JPEG"
        )
    if 2 in tags.get(_SAMPLE_FORMAT, ()) and image.mode == "L":
        raise BadImage("has pixels of 8 bits with a sign; save it without")


def _what(path: Path) -> str | None:
    with path.open("rb") as file:
        return first_bytes.what(file.read(first_bytes.NUM_BYTES))


def _no_picture(kind: str) -> str:
    return f"cannot be decoded, as it is {kind} and no picture; fetch it again, or leave it out"


def _check(image: Image.Image) -> None:
    # Pillow itself only warns up to twice its limit, and a small file may decode to gigabytes.
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise BadImage(_TOO_LARGE)
    _checked(image)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the further frames of an MPO are a phone's previews
        raise BadImage(f"holds {frames} images; expected one a file")


def _check_for_bombs(image: Image.Image, path: Path) -> None:
    """Refuse small files that decode for hours, or to much more than the picture that they hold."""
    if image.format in ("JPEG", "MPO"):
        # Every scan goes over the whole picture. In what is compressed, FF is never followed by DA.
        scans = path.read_bytes().count(b"\xff\xda")
        if scans > MOST_SCANS:
            raise BadImage(f"is a JPEG of {scans} scans; expected at most {MOST_SCANS}; save it again")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        width, height = image.tag_v2.get(_TILE_WIDTH, 0), image.tag_v2.get(_TILE_LENGTH, 0)
        if width * height > MOST_TILE_PIXELS:
            raise BadImage(
                f"has tiles of {width} x {height} pixels; expected at most {MOST_TILE_PIXELS:,}; save it again"
            )


def _check_end(image: Image.Image, path: Path) -> None:
    """Refuse a file whose end is zeros, as a copy that broke off leaves: its last rows would be grey or black."""
    if (end := _END.get(image.format or "")) is None:
        return
    with path.open("rb") as file:
        file.seek(-min(_LAST_BYTES, path.stat().st_size), os.SEEK_END)
        last = file.read()
    written = last.rstrip(b"\0")
    if len(last) - len(written) >= _MANY_ZEROS and not written.endswith(end):
        raise BadImage("ends in zeros, as a copy that was cut off leaves; fetch it again")


def _checked(image: Image.Image) -> Image.Image:
    width, height = image.size
    if min(width, height) < SMALLEST:
        raise BadImage(f"is {width} x {height} pixels; expected at least {SMALLEST} a side")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any colour mode as RGB; transparent pixels become black."""
    match image.mode:
        case "RGB":
            return image
        case "I" | "I;16" | "I;16B" | "I;16L" | "I;16N":
            return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
        case "F":
            raise BadImage("has floating-point pixels; save it with 8 or 16 bits")
        case "LA" | "La" | "PA" | "RGBA" | "RGBa" | "P" if image.has_transparency_data:
            seen = image.convert("RGBA")
            ground = Image.new("RGBA", seen.size, (0, 0, 0, 255))
            return Image.alpha_composite(ground, seen).convert("RGB")
        case _:
            return image.convert("RGB")


def _eight_bits(grey: npt.NDArray[np.integer[Any]]) -> Pixels:
    """Deep grey as 8 bits; Pillow's own conversion would make everything above 255 white.

    A picture of a 12-bit detector in a 16-bit file never exceeds 4095 and would be black on
    the 16-bit scale, so it is read on its own. Two fixed scales keep images comparable.
    """
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise BadImage(f"has grey values from {low} to {high}; expected 8 or 16 bits")
    full = 4095 if high <= 4095 else 65535
    table = (np.arange(high + 1) * 255 + full // 2) // full
    return np.take(table.astype(np.uint8), grey)
