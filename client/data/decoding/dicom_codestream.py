"""What a compressed frame says of itself: its size, its depth and its colours.

A decoder allocates what the codestream says, and transforms colours as the codestream says, whatever the DICOM
header states. So both are read here, before anything is decoded.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Start-of-frame markers of JPEG, and of JPEG-LS."""
_LOSSY = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
"""Those of discrete cosine transforms, before which colours are usually transformed."""
_JFIF, _ADOBE = 0xE0, 0xEE

Colours = Literal["rgb", "ybr"]


@dataclass(frozen=True)
class Codestream:
    """Header of a compressed frame."""

    columns: int
    rows: int
    bits: int
    """Of a sample."""
    colours: Colours | None
    """Of three components, as they come out of the decoder; None where only the DICOM header can say it."""


def of_jpeg2000(data: bytes) -> Codestream | None:
    """Of a codestream, bare or in a JP2 box (ISO 15444-1 A.5.1); None if there is none."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 43:
        return None
    right, bottom, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
    bits = (data[start + 42] & 0x7F) + 1
    return Codestream(right - left, bottom - top, bits, "rgb" if _is_transformed(data, start + 2) else None)


def _is_transformed(data: bytes, place: int) -> bool:
    """Whether the codestream has a colour transform, which its decoder undoes (A.6.1)."""
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] not in (0x90, 0x93):
        if data[place + 1] == 0x52 and place + 9 <= len(data):
            return data[place + 8] == 1
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return False


def of_jpeg(data: bytes) -> Codestream | None:
    """Of JPEG or JPEG-LS (ISO 10918-1 B.2.2); None without a frame header, or with several that differ."""
    frames: set[tuple[int, int, int]] = set()
    colours: Colours | None = None
    jfif, adobe = False, None
    for marker, body in _segments(data):
        if marker == _JFIF and body[:4] == b"JFIF":
            jfif = True
        elif marker == _ADOBE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        elif marker in _FRAME_HEADERS and len(body) >= 6:
            bits, rows, columns, components = struct.unpack(">BHHB", body[:6])
            frames.add((columns, rows, bits))
            if components == 3 and marker in _LOSSY and len(body) >= 15:
                colours = _colours(jfif, adobe, body[6:15])
    if len(frames) != 1:
        return None
    return Codestream(*frames.pop(), colours)


def _colours(jfif: bool, adobe: int | None, components: bytes) -> Colours | None:
    """As libjpeg and Java's ImageIO take them, but where those only guess, the DICOM header decides."""
    names, sampling = components[0::3], set(components[1::3])
    if jfif:
        return "ybr"
    if adobe is not None:
        return "rgb" if adobe == 0 else "ybr"
    if names in (b"RGB", b"rgb"):
        return "rgb"
    return "ybr" if names == b"\x01\x02\x03" or len(sampling) > 1 else None


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers before the first scan, and what follows each."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker == 0xDA:  # start of scan: pixels follow
            return
        yield marker, data[place + 4 : place + 2 + length]
        place += 2 + max(length, 2)
