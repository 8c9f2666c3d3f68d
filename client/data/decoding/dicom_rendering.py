"""Rendering of a DICOM frame's stored values as 8-bit grey or RGB.

Grey goes the way of PS3.3 C.11: stored values to the modality's scale (Hounsfield units for CT), then a window or
a table makes them black to white: the site's own window, else the file's table or window, else the 1st to
the 99th percentile of the frame. Last, a frame whose small values are bright is turned over, so that more is
brighter everywhere. Padding is black in every kind. Pixels that are not square are made so.
Overlays, display shutters, mask subtraction and colour profiles are not applied.
"""

from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.pixels.processing import convert_color_space

from client.data.decoding.dicom_frame import FileWindow, Frame, Scale, Table, attribute, items, table, words
from client.data.references import BadImage, Window

MOST_PIXELS = 2**26
"""Of a frame: 8,192 x 8,192, four times the largest mammograms."""
_ENDS = (1, 99)
_SQUARE, _LONGEST = 0.01, 16.0
"""Proportions of a pixel: what counts as square, and the longest that is believed."""

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Pixels = npt.NDArray[Any]


def rendered(cells: Pixels, frame: Frame, window: Window | None, colours: str | None) -> Image.Image:
    """Picture of what is stored: (H, W) or (H, W, 3), with unused bits if the file is not compressed.

    `colours` are those of three components: rgb or ybr. Raises BadImage.
    """
    if items(frame.header, "EnhancedPaletteColorLookupTableSequence"):
        raise BadImage("blends several palettes; export the plain image")
    values = _used_bits(cells, frame.header)
    if colours is not None:
        picture = _eight_bits_of_colour(values, colours, frame)
    elif frame.photometric == "PALETTE COLOR":
        picture = _coloured(values, frame)
    else:
        is_padding = _padding(values, cells, frame)
        picture = _grey(values, is_padding, frame, window)
        if _has_supplement(frame):
            picture = _supplemented(picture, values, is_padding, frame)
    image = Image.fromarray(picture)
    size = shown_size(frame)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def shown_size(frame: Frame) -> tuple[int, int]:
    """Width and height with square pixels. Raises BadImage."""
    width, height = int(frame.header.Columns), int(frame.header.Rows)
    aspect = frame.pixel_aspect()
    if abs(aspect - 1) <= _SQUARE:
        return width, height
    if not 1 / _LONGEST <= aspect <= _LONGEST:
        raise BadImage(f"says that a pixel is {aspect:g} times as high as wide; export it again")
    size = (width, round(height * aspect)) if aspect > 1 else (round(width / aspect), height)
    if size[0] * size[1] > MOST_PIXELS:
        raise BadImage(
            f"has {size[0]} x {size[1]} pixels once they are square; expected at most {MOST_PIXELS:,}"
        )
    return size


# --- stored values ---------------------------------------------------------------------------


def high_bit(header: Any) -> int:
    """The highest bit of a cell that belongs to the value. Raises BadImage if it cannot be."""
    stored, allocated = int(header.BitsStored), int(header.BitsAllocated)
    value = attribute(header, "HighBit")
    high = stored - 1 if value is None else int(value)
    if not stored - 1 <= high < allocated:
        raise BadImage(f"says high bit {high} for {stored} of {allocated} bits; export it again")
    return high


def _used_bits(cells: Pixels, header: Any) -> Pixels:
    """Values without the bits of a cell that hold none, which may hold overlays (PS3.5 8.1.1)."""
    cells = cells if cells.dtype.isnative else cells.astype(cells.dtype.newbyteorder("="))
    allocated, stored = int(header.BitsAllocated), int(attribute(header, "BitsStored") or 0)
    # A decoder of compressed frames gives values, in cells that may be smaller than the file says.
    if header.file_meta.TransferSyntaxUID.is_encapsulated or not 1 < stored < allocated:
        return cells
    above = allocated - 1 - high_bit(header)
    # A signed cell takes its sign along.
    return (cells << above if above else cells) >> (allocated - stored)


def _padding(values: Pixels, cells: Pixels, frame: Frame) -> Bools | None:
    """Where no measurement is; padding may lie outside of the bits that hold values."""
    is_padding = ~np.isfinite(values) if values.dtype.kind == "f" else None
    if (ends := frame.padding()) is None:
        return is_padding
    for stored in (values, cells) if values is not cells else (values,):
        found = stored == ends[0] if ends[0] == ends[1] else (stored >= ends[0]) & (stored <= ends[1])
        is_padding = found if is_padding is None else is_padding | found
    return is_padding


# --- grey ------------------------------------------------------------------------------------


@np.errstate(all="ignore")  # a file may hold any number, infinite ones included
def _grey(values: Pixels, is_padding: Bools | None, frame: Frame, window: Window | None) -> Bytes:
    of_file = FileWindow(window.centre, window.width, "LINEAR") if window is not None else frame.contrast()
    shown = _scaled(values, frame.scale())
    match of_file:
        case None:
            _stretch(shown, *_ends(shown, is_padding))
        case Table(bits=bits):
            shown = _looked_up(np.rint(np.nan_to_num(shown)), of_file) / np.float32(2**bits - 1)
        case FileWindow(centre, width, "LINEAR"):
            half = max(width - 1, 0) / 2
            _stretch(shown, centre - 0.5 - half, centre - 0.5 + half)
        case FileWindow(centre, width, "LINEAR_EXACT"):
            _stretch(shown, centre - width / 2, centre + width / 2)
        case FileWindow(centre, width):
            shown = 1 / (1 + np.exp((centre - shown) * (4 / width)))
        case _:
            assert_never(of_file)
    np.clip(shown, 0, 1, out=shown)
    if frame.is_inverse:
        np.subtract(1, shown, out=shown)
    if is_padding is not None:
        shown[is_padding] = 0  # what the detector did not see is black in every kind
    np.nan_to_num(shown, copy=False)
    shown *= 255
    shown += 0.5
    return np.asarray(shown).astype(np.uint8)


def _scaled(values: Pixels, scale: Scale) -> Pixels:
    """A new array on the modality's scale."""
    if scale.table is not None:
        return _looked_up(values, scale.table).astype(np.float32)
    if scale.slope == 0 and values.min() != values.max():
        raise BadImage("has a RescaleSlope of 0, which makes all its values the same; export it again")
    # Whole numbers of 16 bits are exact in 32 bits of floating point, larger ones are not.
    exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
    scaled: npt.NDArray[np.floating[Any]] = values.astype(
        np.float64 if (scale.slope, scale.intercept) != (1, 0) else exact
    )
    if scale.slope != 1:
        scaled *= scale.slope
    if scale.intercept:
        scaled += scale.intercept
    return scaled.astype(exact, copy=False)


def _looked_up(values: Pixels, lut: Table) -> Pixels:
    return lut.entries[np.clip(values.astype(np.int64) - lut.first, 0, len(lut.entries) - 1)]


def _stretch(values: Pixels, low: float, high: float) -> None:
    """In place, so that `low` becomes 0 and `high` 1."""
    values -= low
    values *= 1 / max(high - low, 1e-6)


def _ends(values: Pixels, is_padding: Bools | None) -> tuple[float, float]:
    shown = values if is_padding is None else values[~is_padding]
    low, high = np.percentile(shown if shown.size else values, _ENDS)
    return float(low), float(high)


# --- colour ----------------------------------------------------------------------------------


def _eight_bits_of_colour(values: Pixels, colours: str, frame: Frame) -> Bytes:
    bits = min(int(frame.header.BitsStored), 8 * values.dtype.itemsize)
    if values.dtype.kind != "u":
        raise BadImage("has colours with a sign; export it again")
    if colours == "ybr":
        if bits != 8:
            raise BadImage(f"has {frame.photometric} of {bits} bits; expected 8. Export it as RGB")
        values = convert_color_space(values, "YBR_FULL", "RGB")
    if bits < 8:
        return np.asarray(values.astype(np.uint32) * 255 // (2**bits - 1), np.uint8)
    return np.asarray(values >> (bits - 8), np.uint8)


def _palette(frame: Frame) -> tuple[int, Bytes]:
    """The first value of a palette, and its colours as (N, 3)."""
    red, green, blue = (
        table(frame.header, frame.is_signed, frame.is_big_endian, f"{name}PaletteColorLookupTable")
        for name in ("Red", "Green", "Blue")
    )
    if not (
        red.first == green.first == blue.first and len(red.entries) == len(green.entries) == len(blue.entries)
    ):
        raise BadImage("has a palette whose red, green and blue are for different values; export it again")
    colours = np.stack([red.entries, green.entries, blue.entries], axis=1)
    bits = max(red.bits, green.bits, blue.bits)
    # Some files state 16 bits for entries of 8.
    return red.first, np.asarray(colours >> (bits - 8 if colours.max() > 0xFF else 0), np.uint8)


def _coloured(values: Pixels, frame: Frame) -> Bytes:
    first, colours = _palette(frame)
    return np.asarray(colours[np.clip(values.astype(np.int64) - first, 0, len(colours) - 1)])


def _has_supplement(frame: Frame) -> bool:
    """Whether high values are colours (PS3.3 C.8.16.2.1.1.1)."""
    presentation = frame.nested("PixelPresentation") or "".join(words(frame.header, "PixelPresentation"))
    has_palette = attribute(frame.header, "RedPaletteColorLookupTableDescriptor") is not None
    return has_palette and str(presentation).upper() in ("COLOR", "MIXED")


def _supplemented(grey: Bytes, values: Pixels, is_padding: Bools | None, frame: Frame) -> Bytes:
    first, _ = _palette(frame)
    is_colour = values >= first if is_padding is None else (values >= first) & ~is_padding
    return np.where(is_colour[..., None], _coloured(values, frame), grey[..., None])
