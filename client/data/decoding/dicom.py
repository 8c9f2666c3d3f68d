"""Decoding of one DICOM frame into a picture of 8 bits.

Values are brought to the modality's scale (Hounsfield units for CT), then a window makes them
black to white: the site's own, else the file's, else the 1st to the 99th percentile of the frame.
A window's function is taken as linear (PS3.3 C.11.2.1.2.1). MONOCHROME1 is turned over, so that
more is brighter everywhere. Overlays are not drawn.

The size in a file's header is accepted only within limits, and a compressed frame must itself be as large
as the file says before a decoder allocates anything: RLE, JPEG, JPEG-LS and JPEG 2000 are decoded by
pydicom's decoders, which trust their input, so they run outside the trainer's process
(`client/data/decoding/dicom_worker.py`).
"""

import logging
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.processing import apply_color_lut, apply_rescale
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000TransferSyntaxes, RLELossless

from client.data.decoding import dicom_worker
from client.data.decoding.memory_budget import reserved
from client.data.references import BadImage, DicomFrame, Window

MOST_PIXELS = 2**26
"""Of a frame: 8,192 x 8,192, four times the largest mammograms."""
MOST_FRAMES = 100_000
_MOST_HEADER = 2**26
"""Bytes before the pixels; private tags of some scanners take a few MiB."""
_ENDS = (1, 99)
_JPEG_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Start-of-frame markers of JPEG, and of JPEG-LS."""

Floats = npt.NDArray[np.float32]

# pydicom tells of every odd value, with the value, which may be a patient's.
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


def read_header(path: Path) -> pydicom.FileDataset:
    """The header: everything before the pixels. Raises BadImage."""
    try:
        # A deflated file unpacks as a whole, header and pixels, to a size that is not known before.
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax != DeflatedExplicitVRLittleEndian:
            return pydicom.dcmread(path, stop_before_pixels=True, defer_size=_MOST_HEADER)
    except InvalidDicomError as error:
        raise BadImage("lacks the header of a DICOM file (the mark DICM); export it again") from error
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror or type(error).__name__})") from error
    except Exception as error:
        # Parsers answer a broken file with nearly any error there is, and its text may hold a value.
        raise BadImage(f"cannot be read as DICOM ({type(error).__name__}); export it again") from error
    raise BadImage("is a deflated DICOM, which may unpack to any size; save it undeflated")


def num_frames(header: pydicom.Dataset) -> int:
    """Number of images in a file. Raises BadImage if there are none that can be read."""
    try:
        rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        frames = int(header.get("NumberOfFrames") or 1)
    except Exception as error:  # a value is converted when it is read
        raise BadImage(
            "says no number where rows, columns or frames should stand; export it again"
        ) from error
    if min(rows, columns) < 1:
        raise BadImage(f"holds no image (modality {header.get('Modality') or 'unknown'}); leave it out")
    if rows * columns > MOST_PIXELS:
        raise BadImage(f"says {columns} x {rows} pixels; expected at most {MOST_PIXELS:,} a frame")
    if not 1 <= frames <= MOST_FRAMES:
        raise BadImage(f"says {frames} frames; expected 1 to {MOST_FRAMES:,}")
    return frames


def picture(reference: DicomFrame) -> Image.Image:
    """The frame as RGB or as 8-bit grey. Raises BadImage."""
    header = read_header(reference.path)
    frames = num_frames(header)
    if reference.frame >= frames:
        raise BadImage(f"has {frames} frame(s), found no frame {reference.frame + 1}")
    try:
        _check_layout(header)
        _check_codestream(reference, header, frames)
        with reserved(header.Rows * header.Columns):
            return _rendered(_values(reference, header), header, reference)
    except BadImage:
        raise
    except Exception as error:
        syntax = UID(str(getattr(header, "file_meta", {}).get("TransferSyntaxUID", ""))).name
        raise BadImage(f"has pixels ({syntax}) that cannot be decoded ({type(error).__name__})") from error


def _values(reference: DicomFrame, header: pydicom.FileDataset) -> npt.NDArray[Any]:
    if UID(header.file_meta.TransferSyntaxUID).is_encapsulated:
        most_bytes = 4 * 3 * int(header.Rows) * int(header.Columns)
        return dicom_worker.frame(reference.path, reference.frame, most_bytes)
    return pixel_array(reference.path, index=reference.frame)


def _rendered(pixels: npt.NDArray[Any], header: pydicom.Dataset, reference: DicomFrame) -> Image.Image:
    if header.get("PhotometricInterpretation") == "PALETTE COLOR":
        colour = apply_color_lut(pixels, header)
        return Image.fromarray(_from_top(colour, 8 * colour.dtype.itemsize))
    if pixels.ndim == 3:
        return Image.fromarray(_from_top(pixels, int(header.BitsStored)))
    return Image.fromarray(_grey(pixels, header, reference))


# --- what is believed before decoding --------------------------------------------------------


def _check_layout(header: pydicom.Dataset) -> None:
    if "TransferSyntaxUID" not in getattr(header, "file_meta", {}):
        raise BadImage("does not say how its pixels are stored (transfer syntax); export it again")
    samples, bits = header.get("SamplesPerPixel", 1), header.get("BitsAllocated")
    if samples not in (1, 3) or bits not in (1, 8, 16, 32):
        raise BadImage(f"has {samples} sample(s) of {bits} bits a pixel; expected 1 or 3 of 8, 16 or 32 bits")


def _check_codestream(reference: DicomFrame, header: pydicom.Dataset, frames: int) -> None:
    """A compressed frame has the size that the file says, so that no decoder allocates more."""
    syntax = UID(header.file_meta.TransferSyntaxUID)
    if not syntax.is_encapsulated or syntax == RLELossless:
        return
    with reference.path.open("rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True, defer_size=_MOST_HEADER)
        file.seek(12, 1)  # tag, VR, two reserved bytes and a length: encapsulated pixels are always explicit
        data = get_frame(file, reference.frame, number_of_frames=frames)
    in_frame = _size_in_jpeg2000(data) if syntax in JPEG2000TransferSyntaxes else _size_in_jpeg(data)
    in_header = int(header.Columns), int(header.Rows)
    if in_frame != in_header:
        raise BadImage(
            f"says {in_header[0]} x {in_header[1]} pixels, but its frame "
            f"{'x'.join(map(str, in_frame)) if in_frame else 'no size'}; "
            "export it again"
        )


def _size_in_jpeg2000(data: bytes) -> tuple[int, int] | None:
    """Columns and rows of a codestream, bare or in a JP2 box (ISO 15444-1 A.5.1)."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 24:
        return None
    right, bottom, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
    return right - left, bottom - top


def _size_in_jpeg(data: bytes) -> tuple[int, int] | None:
    """Columns and rows of the first frame header (ISO 10918-1 B.2.2); all of them if they agree."""
    sizes = set(_frame_headers(data))
    return sizes.pop() if len(sizes) == 1 else None


def _frame_headers(data: bytes) -> Iterator[tuple[int, int]]:
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker in _JPEG_HEADERS:
            rows, columns = struct.unpack(">2H", data[place + 5 : place + 9])
            yield columns, rows
        if marker == 0xDA:  # start of scan: pixels follow
            return
        place += 2 + max(length, 2) if marker != 0xFF else 1


# --- from values to grey ---------------------------------------------------------------------


@np.errstate(all="ignore")  # a file may hold any number, infinite ones included
def _grey(pixels: npt.NDArray[Any], header: pydicom.Dataset, reference: DicomFrame) -> npt.NDArray[np.uint8]:
    values = np.array(apply_rescale(pixels, header), np.float32)
    padding = header.get("PixelPaddingValue")
    is_padding = np.zeros(pixels.shape, bool) if padding is None else np.asarray(pixels == padding)
    window = reference.window or _own_window(header, reference.frame)
    low, high = _ends(values, is_padding) if window is None else _edges(window)
    values -= low
    values *= 1 / max(high - low, 1e-6)
    np.clip(values, 0, 1, out=values)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        np.subtract(1, values, out=values)
    values[is_padding] = 0  # what the detector did not see is black in every kind
    np.nan_to_num(values, copy=False)
    values *= 255
    values += 0.5
    return values.astype(np.uint8)


def _edges(window: Window) -> tuple[float, float]:
    """PS3.3 C.11.2.1.2.1: the values that become black and white."""
    half = max(window.width - 1, 0) / 2
    return window.centre - 0.5 - half, window.centre - 0.5 + half


def _own_window(header: pydicom.Dataset, frame: int) -> Window | None:
    """The first window of the file; of an enhanced multi-frame, that of the frame or of all frames."""
    places = [header]
    for groups, number in (
        ("SharedFunctionalGroupsSequence", 0),
        ("PerFrameFunctionalGroupsSequence", frame),
    ):
        items = header.get(groups) or []
        inner = items[number].get("FrameVOILUTSequence") if number < len(items) else None
        places += list(inner or [])
    for place in reversed(places):
        centre, width = (_first(place.get(word)) for word in ("WindowCenter", "WindowWidth"))
        if centre is not None and width is not None and width >= 1:
            return Window(centre, width)
    return None


def _first(value: Any) -> float | None:
    values = [value] if isinstance(value, int | float | str) else list(value or [])
    return float(values[0]) if values and np.isfinite(float(values[0])) else None


def _ends(values: Floats, is_padding: npt.NDArray[np.bool_]) -> tuple[float, float]:
    shown = values[~is_padding]
    low, high = np.percentile(shown if shown.size else values, _ENDS)
    return float(low), float(high)


def _from_top(colour: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """The eight highest of the stored bits."""
    return np.asarray(colour >> max(bits - 8, 0), np.uint8)
