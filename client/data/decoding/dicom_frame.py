"""Attributes of one DICOM frame, wherever its file states them.

A classic file has one flat header. An enhanced one states scale, window, spacing and type in functional groups
(PS3.3 C.7.6.16): of the frame itself, or shared by all frames. What stands nearest to the frame holds.
Legacy converted files keep what did not fit in two more groups. The flat header is asked last.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.tag import BaseTag, Tag

from client.data.references import BadImage

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

_UNASSIGNED = {
    "PerFrameFunctionalGroupsSequence": "UnassignedPerFrameConvertedAttributesSequence",
    "SharedFunctionalGroupsSequence": "UnassignedSharedConvertedAttributesSequence",
}
_MOST_ENTRIES = 2**16


@dataclass(frozen=True)
class Table:
    """A look-up table (PS3.3 C.11.1.1): values below and above it get its first and its last entry."""

    first: int
    """Value that the first entry is for."""
    entries: npt.NDArray[np.uint16]
    bits: int
    """Of an entry."""


@dataclass(frozen=True)
class FileWindow:
    """A window that a file states (PS3.3 C.11.2.1.2)."""

    centre: float
    width: float
    function: Function


@dataclass(frozen=True)
class Scale:
    """From stored values to the modality's: a line or a table."""

    slope: float = 1.0
    intercept: float = 0.0
    table: Table | None = None


# --- reading a header ------------------------------------------------------------------------


def attribute(place: Dataset, keyword: str) -> Any:
    """A value, None if it is missing or empty. Raises BadImage if it is broken."""
    tag = _tag(keyword)
    if tag not in place:  # quicker than to ask by keyword for what most files lack
        return None
    try:
        value = place[tag].value
    except Exception as error:
        # pydicom converts values when they are read, and a broken one raises nearly anything.
        raise BadImage(f"has a broken {keyword}; export it again") from error
    return None if value is None or value == "" else value


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def text(place: Dataset, keyword: str) -> str:
    """A value as text, "" if it is missing. Raises BadImage if it is broken."""
    value = attribute(place, keyword)
    return "" if value is None else str(value).strip()


def numbers(place: Dataset, keyword: str) -> list[float]:
    """All numbers of a value, none if it is missing. Raises BadImage if they are no numbers."""
    value = attribute(place, keyword)
    try:
        return [] if value is None else [float(one) for one in (value if _is_several(value) else [value])]
    except (TypeError, ValueError) as error:
        raise BadImage(f"has a {keyword} that is no number; export it again") from error


def words(place: Dataset, keyword: str) -> list[str]:
    """All words of a value in capitals. Raises BadImage if it is broken."""
    value = attribute(place, keyword)
    parts = value if _is_several(value) else [] if value is None else [value]
    return [str(part).strip().upper() for part in parts]


def items(place: Dataset, keyword: str) -> list[Dataset]:
    """Items of a sequence, none if it is missing. Raises BadImage if it is broken."""
    value = attribute(place, keyword)
    if value is None:
        return []
    if not _is_several(value) or not all(isinstance(item, Dataset) for item in value):
        raise BadImage(f"has a broken {keyword}; export it again")
    return list(value)


def _is_several(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


# --- of one frame ----------------------------------------------------------------------------


class Frame:
    """One frame's view of a header."""

    def __init__(self, header: Dataset, number: int, num_frames: int) -> None:
        self.header = header
        self._groups: list[Dataset] = []
        for groups, unassigned in _UNASSIGNED.items():
            found = attribute(header, groups) or []
            is_of_frame = groups.startswith("PerFrame")
            if is_of_frame and found and len(found) != num_frames:
                raise BadImage(
                    f"says {num_frames} frames, but describes {len(found)} of them; export it again"
                )
            # One item is looked at, since there are as many as frames.
            for group in list(found[number : number + 1] if is_of_frame else found[:1]):
                self._groups += [group, *items(group, unassigned)[:1]]

    def places(self, macro: str) -> Iterator[Dataset]:
        """Where an attribute of a macro may stand, the nearest first."""
        for group in self._groups:
            yield from items(group, macro)[:1]
            yield group
        yield self.header

    def nested(self, keyword: str) -> Any:
        """An attribute in whatever macro of the frame has it, else of the header."""
        for group in self._groups:
            for element in group:
                if element.VR == "SQ":
                    for item in items(group, element.keyword)[:1] if element.keyword else []:
                        if (found := attribute(item, keyword)) is not None:
                            return found
        return attribute(self.header, keyword)

    def scale(self) -> Scale:
        """Scale of the modality: the table of the nearest place that has one, else its line. Raises BadImage."""
        for place in self.places("PixelValueTransformationSequence"):
            for item in items(place, "ModalityLUTSequence")[:1]:
                return Scale(table=table(item, self.is_signed, self.is_big_endian))
            slopes, intercepts = numbers(place, "RescaleSlope"), numbers(place, "RescaleIntercept")
            if slopes or intercepts:
                return Scale(_one(slopes, 1, "RescaleSlope"), _one(intercepts, 0, "RescaleIntercept"))
        return Scale()

    def contrast(self) -> Table | FileWindow | None:
        """Table or window of the nearest place that has one that can be used. Raises BadImage."""
        for place in self.places("FrameVOILUTSequence"):
            for item in items(place, "VOILUTSequence")[:1]:
                # Its first value is written without a sign by some, even where values go below 0.
                return table(item, self.is_signed or self.scale().intercept < 0, self.is_big_endian)
            if (window := _window(place)) is not None:
                return window
        return None

    def pixel_aspect(self) -> float:
        """Height of a pixel over its width. Raises BadImage if it is no proportion of an image."""
        for keyword in (
            "PixelSpacing",
            "ImagerPixelSpacing",
            "NominalScannedPixelSpacing",
            "PixelAspectRatio",
        ):
            for place in self.places("PixelMeasuresSequence"):
                sides = numbers(place, keyword)
                if len(sides) == 2 and all(math.isfinite(side) and side > 0 for side in sides):
                    return sides[0] / sides[1]
        return 1.0

    @property
    def photometric(self) -> str:
        return text(self.header, "PhotometricInterpretation").upper()

    @property
    def is_signed(self) -> bool:
        return bool(attribute(self.header, "PixelRepresentation") == 1)

    @property
    def is_big_endian(self) -> bool:
        meta = getattr(self.header, "file_meta", Dataset())
        return text(meta, "TransferSyntaxUID") == "1.2.840.10008.1.2.2"

    @property
    def is_inverse(self) -> bool:
        """Whether small values are bright. A file that says it in both ways means it once (PS3.3 C.8.11.3.1.2)."""
        return (
            self.photometric == "MONOCHROME1"
            or text(self.header, "PresentationLUTShape").upper() == "INVERSE"
        )

    @property
    def is_localizer(self) -> bool:
        """Whether the frame is a scout, on which others were planned."""
        value = self.nested("FrameType")
        of_frame = {str(word).upper() for word in (value if _is_several(value) else [])}
        return "LOCALIZER" in (of_frame or set(words(self.header, "ImageType")))

    def padding(self) -> tuple[float, float] | None:
        """Lowest and highest stored value that stands for no measurement (PS3.3 C.7.5.1.1.2)."""
        is_float = attribute(self.header, "BitsStored") is None
        for kind in ("FloatPixel", "DoubleFloatPixel") if is_float else ("Pixel",):
            ends = [
                self._stored(numbers(self.header, f"{kind}Padding{end}"), kind)
                for end in ("Value", "RangeLimit")
            ]
            if ends[0] is not None:
                last = ends[0] if ends[1] is None else ends[1]
                return min(ends[0], last), max(ends[0], last)
        return None

    def _stored(self, value: list[float], kind: str) -> float | None:
        """Padding as the pixels have it, though some files write it with the other sign (US, SS)."""
        if not value or kind != "Pixel":
            return value[0] if value else None
        if self.is_signed and value[0] >= 2**15 and (attribute(self.header, "BitsAllocated") or 16) <= 16:
            return value[0] - 2**16
        return value[0] + 2**16 if not self.is_signed and value[0] < 0 else value[0]


def _one(values: list[float], default: float, keyword: str) -> float:
    if len(values) > 1 or not all(map(math.isfinite, values)):
        raise BadImage(f"says {len(values)} values or no number as {keyword}; expected one number")
    return values[0] if values else default


def _window(place: Dataset) -> FileWindow | None:
    """The first of a place's windows that has a width."""
    function = text(place, "VOILUTFunction").upper() or "LINEAR"
    for centre, width in zip(numbers(place, "WindowCenter"), numbers(place, "WindowWidth"), strict=False):
        if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
            continue
        match function:
            case "LINEAR" if width >= 1:
                return FileWindow(centre, width, "LINEAR")
            case "LINEAR" | "LINEAR_EXACT":
                # The standard's LINEAR takes one from the width, so one below 1 can only be meant exactly.
                return FileWindow(centre, width, "LINEAR_EXACT")
            case "SIGMOID":
                return FileWindow(centre, width, "SIGMOID")
            case _:
                raise BadImage(
                    f"has a window of the function {function}; expected LINEAR, LINEAR_EXACT or SIGMOID"
                )
    return None


# --- tables ----------------------------------------------------------------------------------


def table(item: Dataset, is_signed: bool, is_big_endian: bool, name: str = "LUT") -> Table:
    """A table of an item, or the one called `name` of a palette. Raises BadImage."""
    descriptor = numbers(item, f"{name}Descriptor")
    if len(descriptor) != 3 or not all(value == int(value) for value in descriptor):
        raise BadImage(f"has a look-up table without its three numbers ({name}Descriptor); export it again")
    count, first, bits = (int(value) for value in descriptor)
    count = count % _MOST_ENTRIES or _MOST_ENTRIES  # 0 means 65,536, and some files write it with a sign
    if not 8 <= bits <= 16:
        raise BadImage(f"has a look-up table of {bits} bits; expected 8 to 16")
    if is_signed and first >= 2**15:
        first -= 2**16
    data = attribute(item, f"{name}Data")
    if data is None and name != "LUT":
        entries, stored = _expanded(attribute(item, f"Segmented{name}Data"), bits, is_big_endian, count)
    else:
        entries, stored = _entries(data, bits, is_big_endian, count)
    if len(entries) < count:
        raise BadImage(f"has a look-up table of {len(entries)} entries; expected {count}")
    return Table(first, entries[:count], stored)


def _entries(data: Any, bits: int, is_big_endian: bool, count: int) -> tuple[npt.NDArray[np.uint16], int]:
    """Entries, and the bits that they really have."""
    if isinstance(data, bytes):
        is_packed = bits == 8 and len(data) < 2 * count
        entries = _unpacked(data, is_packed, is_big_endian)
    else:
        values = [int(one) for one in (data if _is_several(data) else [] if data is None else [data])]
        if values and not 0 <= min(values) <= max(values) < _MOST_ENTRIES:
            raise BadImage("has a look-up table with entries of more than 16 bits; export it again")
        entries = np.array(values, np.uint16)
    if bits == 8 and len(entries) and int(entries.max()) > 0xFF:
        return entries, 16  # eight bits in the upper half of sixteen
    return entries, bits


def _unpacked(data: bytes, is_packed: bool, is_big_endian: bool) -> npt.NDArray[np.uint16]:
    if is_packed:
        return np.frombuffer(data, np.uint8).astype(np.uint16)
    return np.frombuffer(data[: len(data) // 2 * 2], ">u2" if is_big_endian else "<u2").astype(np.uint16)


def _expanded(data: Any, bits: int, is_big_endian: bool, count: int) -> tuple[npt.NDArray[np.uint16], int]:
    """Entries of a table in segments, no more than `count` (PS3.3 C.7.9.2)."""
    if not isinstance(data, bytes):
        raise BadImage("has a palette without colours; export it again")
    codes = _unpacked(data, bits == 8, is_big_endian).tolist()
    entries: list[int] = []
    place = 0
    while place + 2 < len(codes) and len(entries) < count:
        kind, length = codes[place : place + 2]
        if kind == 0:
            entries += codes[place + 2 : place + 2 + length]
            place += 2 + length
        elif kind == 1 and entries and length:
            last, step = entries[-1], (codes[place + 2] - entries[-1]) / length
            entries += [round(last + step * number) for number in range(1, length + 1)]
            place += 3
        else:
            raise BadImage(f"has a palette with segments of kind {kind}; expected values (0) or lines (1)")
    return np.array(entries[:count], np.uint16), bits
