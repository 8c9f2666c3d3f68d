"""How far the pixels of a DICOM file go, whatever its header says.

A header that lacks its number of frames would leave all frames but the first unused without a word, and pixels that
are compressed, or not, against what the header says would be read as noise. So what is stored is measured.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.encaps import parse_basic_offsets, parse_fragments
from pydicom.uid import UID, RLELossless

from client.data.decoding.dicom_frame import attribute
from client.data.references import BadImage

MOST_HEADER = 2**26
"""Bytes before the pixels; private tags of some scanners take a few MiB."""
_UNDEFINED = 2**32 - 1
_GROUP_OF_PIXELS = 0x7FE0
_ITEM = b"\xfe\xff\x00\xe0"
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
"""First bytes of a frame of JPEG and of JPEG 2000; a further fragment of one frame begins otherwise."""
_MOST_STARTS = 4096


@dataclass(frozen=True)
class Extent:
    """The element that holds the pixels."""

    is_implicit: bool
    """Whether it is written without a VR."""
    num_bytes: int | None
    """None if it is compressed."""
    num_frames: int | None
    """Of compressed pixels, as far as their fragments tell; None of others."""


def check_extent(extent: Extent, header: pydicom.Dataset, frames: int) -> None:
    """Raises BadImage if a file has other pixels than its header says."""
    syntax = UID(header.file_meta.TransferSyntaxUID)
    if extent.is_implicit != syntax.is_implicit_VR:
        raise BadImage(f"is not written as its transfer syntax ({syntax.name}) says; export it again")
    if (extent.num_bytes is None) != syntax.is_encapsulated:
        said = "compressed" if syntax.is_encapsulated else "not compressed"
        raise BadImage(f"says that its pixels are {said} ({syntax.name}), which is not so; export it again")
    if extent.num_bytes is None:
        if extent.num_frames is not None and extent.num_frames > frames:
            raise _other_number(extent.num_frames, frames)
        return
    bits = int(header.Rows) * int(header.Columns) * int(attribute(header, "SamplesPerPixel") or 1)
    bits *= int(header.BitsAllocated)
    least = 2 * bits // 3 if header.PhotometricInterpretation == "YBR_FULL_422" else bits
    if extent.num_bytes < (least * frames + 7) // 8:
        missing = (least * frames + 7) // 8 - extent.num_bytes
        raise BadImage(f"has pixels that end {missing:,} bytes too early; export or copy it again")
    # What follows the last frame is padding, unless it is a frame more.
    if 8 * extent.num_bytes >= bits * (frames + 1):
        raise _other_number(8 * extent.num_bytes // bits, frames)


def same_pixels(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes as pixels. Raises BadImage."""
    return _pixels(one) == _pixels(other)


def _pixels(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            pydicom.dcmread(file, stop_before_pixels=True, defer_size=MOST_HEADER)
            return file.read()
    except Exception as error:  # parsers answer a broken file with nearly any error there is
        raise BadImage(f"cannot be read as DICOM ({type(error).__name__}); export it again") from error


def _other_number(stored: int, said: int) -> BadImage:
    return BadImage(
        f"holds pixels of {stored} frames, but its header says {said} (NumberOfFrames); export it again"
    )


def measured(file: BinaryIO, syntax: UID) -> Extent:
    """The element that `file` stands at, as after a header was read. Raises BadImage if there are no pixels."""
    order = "<" if syntax.is_little_endian else ">"
    start = file.read(8)
    # A length is even, and as a number each of these is odd.
    is_implicit = start[4:6] not in (b"OB", b"OW", b"OF", b"OD", b"UN")
    start += b"" if is_implicit else file.read(4)
    if len(start) < 8 or struct.unpack(f"{order}H", start[:2])[0] != _GROUP_OF_PIXELS:
        raise BadImage("has no pixels; export it again, or leave it out")
    (length,) = struct.unpack(f"{order}I", start[-4:])
    if length != _UNDEFINED and not _begins_with_items(file):
        # A file that is cut off has less than it says.
        place = file.tell()
        return Extent(is_implicit, min(length, file.seek(0, os.SEEK_END) - place), None)
    offsets = parse_basic_offsets(file)
    _, places = parse_fragments(file)
    if offsets:
        return Extent(is_implicit, None, len(offsets))
    if syntax == RLELossless or len(places) > _MOST_STARTS:
        return Extent(is_implicit, None, len(places) if syntax == RLELossless else None)
    return Extent(is_implicit, None, sum(_begins_a_frame(file, place) for place in places))


def _begins_with_items(file: BinaryIO) -> bool:
    """Whether the table of offsets and the item of a first frame stand here; `file` stays where it is."""
    place = file.tell()
    tag, length = file.read(4), int.from_bytes(file.read(4), "little")
    file.seek(place + 8 + length)
    is_so = tag == _ITEM and file.read(4) == _ITEM
    file.seek(place)
    return is_so


def _begins_a_frame(file: BinaryIO, place: int) -> bool:
    file.seek(place + 8)
    return file.read(8).startswith(_STARTS)
