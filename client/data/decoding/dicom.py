"""Decoding of one DICOM frame into a picture of 8 bits.

What an object is decides first (`dicom_kind.py`): a mask or a dose grid is no picture. Then the header's statements are
checked against each other and against the compressed frame, and what contradicts itself, or cannot be rendered as
its file means it, is refused with a reason. How values become grey or colour is in
`dicom_rendering.py`.

The size in a file's header is accepted only within limits, and a compressed frame must itself be as large
as the file says before a decoder allocates anything: RLE, JPEG, JPEG-LS and JPEG 2000 are decoded by
pydicom's decoders, which trust their input, so they run outside the trainer's process
(`client/data/decoding/dicom_worker.py`).
"""

import logging
import threading
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000TransferSyntaxes, RLELossless

from client.data.decoding import dicom_rendering as rendering
from client.data.decoding import dicom_worker
from client.data.decoding.dicom_codestream import Codestream, of_jpeg, of_jpeg2000
from client.data.decoding.dicom_extent import MOST_HEADER, Extent, check_extent, measured
from client.data.decoding.dicom_frame import Frame, attribute
from client.data.decoding.dicom_kind import other_than_image, with_article
from client.data.decoding.dicom_rendering import MOST_PIXELS, rendered
from client.data.decoding.memory_budget import reserved
from client.data.references import BadImage, DicomFrame

MOST_FRAMES = 100_000
_LAST = threading.local()
_OF_WHOLE_NUMBERS = ("BitsStored", "PixelRepresentation")
_GREY = {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}
_COLOURS = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}

# pydicom tells of every odd value, with the value, which may be a patient's.
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


def read_header(path: Path) -> pydicom.FileDataset:
    """The header: everything before the pixels. Raises BadImage."""
    header, _ = _read(path, is_measured=False)
    return header


def _read(path: Path, *, is_measured: bool) -> tuple[pydicom.FileDataset, Extent | BadImage | None]:
    """The header, and how far the pixels go, or why that is not known. Raises BadImage."""
    try:
        # A deflated file unpacks as a whole, header and pixels, to a size that is not known before.
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax != DeflatedExplicitVRLittleEndian:
            with path.open("rb") as file:
                header = pydicom.dcmread(file, stop_before_pixels=True, defer_size=MOST_HEADER)
                return header, _measured(file, UID(str(syntax))) if is_measured else None
    except InvalidDicomError as error:
        raise BadImage(
            "lacks the header of a DICOM file (132 bytes that end in DICM); export it again, or let `dcmconv` of DCMTK "
            "add it"
        ) from error
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror or type(error).__name__})") from error
    except Exception as error:
        # Parsers answer a broken file with nearly any error there is, and its text may hold a value.
        raise BadImage(f"cannot be read as DICOM ({type(error).__name__}); export it again") from error
    raise BadImage("is a deflated DICOM, which may unpack to any size; save it undeflated")


def _measured(file: BinaryIO, syntax: UID) -> Extent | BadImage:
    try:
        return measured(file, syntax)
    except BadImage as bad:
        return bad
    except Exception as error:  # nearly anything, as the file may hold any bytes
        return BadImage(f"has pixels that cannot be found ({type(error).__name__}); export it again")


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
    header, extent = _kept_header(reference.path)
    if (kind := other_than_image(header)) is not None:
        raise BadImage(f"is {with_article(kind)} and no image; leave it out")
    frames = num_frames(header)
    if reference.frame >= frames:
        raise BadImage(f"has {frames} frame(s), found no frame {reference.frame + 1}")
    try:
        frame = Frame(header, reference.frame, frames)
        _check_layout(header, frame)
        if isinstance(extent, BadImage):
            raise extent  # noqa: TRY301
        if extent is not None:
            check_extent(extent, header, frames)
        codestream = _codestream(reference, header, frames)
        colours = _colours(frame, codestream)
        with reserved(header.Rows * header.Columns):
            return rendered(_cells(reference, header, frames), frame, reference.window, colours)
    except BadImage:
        raise
    except Exception as error:
        syntax = UID(str(getattr(header, "file_meta", {}).get("TransferSyntaxUID", ""))).name
        raise BadImage(f"has pixels ({syntax}) that cannot be decoded ({type(error).__name__})") from error


def _kept_header(path: Path) -> tuple[pydicom.FileDataset, Extent | BadImage | None]:
    """As `_read`; of a file with many frames from memory, if this thread has just read it. Raises BadImage."""
    try:
        status = path.stat()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror or type(error).__name__})") from error
    version = (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if getattr(_LAST, "version", None) != version:
        # Kept by thread, since pydicom converts values when they are read, and a header is changed by that.
        header, extent = _read(path, is_measured=True)
        if "NumberOfFrames" not in header:
            return header, extent
        _LAST.version, _LAST.read = version, (header, extent)
    kept: tuple[pydicom.FileDataset, Extent | BadImage | None] = _LAST.read
    return kept


def shown_sizes(path: Path) -> list[tuple[int, int]]:
    """Width and height of each frame's picture, from the header alone. Raises BadImage."""
    header = read_header(path)
    frames = num_frames(header)
    return [rendering.shown_size(Frame(header, number, frames)) for number in range(frames)]


def _cells(reference: DicomFrame, header: pydicom.FileDataset, frames: int) -> npt.NDArray[Any]:
    """What is stored, before any conversion."""
    if UID(header.file_meta.TransferSyntaxUID).is_encapsulated:
        most_bytes = 4 * 3 * int(header.Rows) * int(header.Columns)
        return dicom_worker.frame(reference.path, reference.frame, most_bytes)
    options: dict[str, Any] = {}
    if header.PhotometricInterpretation == "YBR_FULL_422" and _is_as_long_as_full(reference, header, frames):
        options["photometric_interpretation"] = "YBR_FULL"
    return pixel_array(reference.path, index=reference.frame, raw=True, correct_unused_bits=False, **options)


def _is_as_long_as_full(reference: DicomFrame, header: pydicom.FileDataset, frames: int) -> bool:
    """Whether pixels that are said to be subsampled are not."""
    syntax = UID(header.file_meta.TransferSyntaxUID)
    with reference.path.open("rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True, defer_size=MOST_HEADER)
        file.seek(4 if syntax.is_implicit_VR else 8, 1)
        length = int.from_bytes(file.read(4), "little" if syntax.is_little_endian else "big")
    return length >= 3 * int(header.Rows) * int(header.Columns) * frames


# --- what is believed before decoding --------------------------------------------------------


def _check_layout(header: pydicom.Dataset, frame: Frame) -> None:
    if "TransferSyntaxUID" not in getattr(header, "file_meta", {}):
        raise BadImage("does not say how its pixels are stored (transfer syntax); export it again")
    syntax = UID(header.file_meta.TransferSyntaxUID)
    if syntax.keyword.startswith(("MPEG", "HEVC")):
        raise BadImage(f"is a video ({syntax.name}); export its frames as images")
    samples, bits = header.get("SamplesPerPixel", 1), header.get("BitsAllocated")
    is_float = bits in (32, 64) and header.get("BitsStored") is None
    if samples not in (1, 3) or not (bits in (1, 8, 16, 32) or is_float):
        raise BadImage(f"has {samples} sample(s) of {bits} bits a pixel; expected 1 or 3 of 8, 16 or 32 bits")
    needed = ["SamplesPerPixel", "PhotometricInterpretation", *([] if is_float else _OF_WHOLE_NUMBERS)]
    if samples == 3 and not syntax.is_encapsulated:
        needed.append("PlanarConfiguration")
    if missing := [word for word in needed if attribute(header, word) is None]:
        raise BadImage(f"lacks {', '.join(missing)}, so its pixels have no meaning; export it again")
    if frame.photometric not in (_GREY if samples == 1 else _COLOURS):
        raise BadImage(
            f"has {samples} sample(s) a pixel as {frame.photometric}; "
            f"expected {', '.join(sorted(_GREY if samples == 1 else _COLOURS))}"
        )
    if not is_float:
        rendering.high_bit(header)


def _colours(frame: Frame, codestream: Codestream | None) -> str | None:
    """rgb or ybr, as the components come out of the decoder; None for one component."""
    if frame.photometric not in _COLOURS:
        return None
    syntax = UID(frame.header.file_meta.TransferSyntaxUID)
    said = "ybr" if frame.photometric in ("YBR_FULL", "YBR_FULL_422") else "rgb"
    if syntax in JPEG2000TransferSyntaxes:
        if said == "ybr" and codestream is not None and codestream.colours == "rgb":
            raise BadImage(
                f"says {frame.photometric}, but its JPEG 2000 frames transform colours themselves; export it again"
            )
        return said
    if frame.photometric in ("YBR_ICT", "YBR_RCT"):
        raise BadImage(
            f"says {frame.photometric}, which only JPEG 2000 has, and is {syntax.name}; export it again"
        )
    return codestream.colours or said if codestream is not None else said


def _codestream(reference: DicomFrame, header: pydicom.Dataset, frames: int) -> Codestream | None:
    """Header of a compressed frame, which has the size that the file says, so that no decoder allocates more."""
    syntax = UID(header.file_meta.TransferSyntaxUID)
    if not syntax.is_encapsulated:
        return None
    is_odd = (
        attribute(header, "BitsStored") is not None and rendering.high_bit(header) != header.BitsStored - 1
    )
    if syntax == RLELossless:
        if is_odd:
            raise BadImage(
                "is compressed, and its values do not begin at the lowest bit; export it uncompressed"
            )
        return None
    found = _read_codestream(reference, header, frames, syntax)
    in_header = int(header.Columns), int(header.Rows)
    if found is None or (found.columns, found.rows) != in_header:
        raise BadImage(
            f"says {in_header[0]} x {in_header[1]} pixels, but its frame "
            f"{f'{found.columns}x{found.rows}' if found else 'no size'}; "
            "export it again"
        )
    if is_odd and found.bits > header.BitsStored:
        raise BadImage("is compressed, and its values do not begin at the lowest bit; export it uncompressed")
    return found


def _read_codestream(
    reference: DicomFrame, header: pydicom.Dataset, frames: int, syntax: UID
) -> Codestream | None:
    offsets, lengths = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
    with reference.path.open("rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True, defer_size=MOST_HEADER)
        file.seek(12, 1)  # tag, VR, two reserved bytes and a length: encapsulated pixels are always explicit
        data = get_frame(
            file,
            reference.frame,
            number_of_frames=frames,
            extended_offsets=(offsets, lengths) if offsets and lengths else None,
        )
    return of_jpeg2000(data) if syntax in JPEG2000TransferSyntaxes else of_jpeg(data)
