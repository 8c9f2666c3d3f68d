"""Safetensors without a copy of the arrays: written from their own memory, read as views of what holds them.

The library makes the same bytes and reads them, but copies each array once or twice, and a model is copied at every
step of its way through a trainer and a server. Its file on disk is first written under another name beside the one
asked for, where a kill leaves it. The format is an index in JSON, its length before it, and the arrays one after the
other (https://huggingface.co/docs/safetensors). What is read is checked as the library does it: each array has the
bytes of its shape, and together they fill the file without gaps.
"""

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from common.formats import json_text

Array = npt.NDArray[Any]

_TYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""Types of the format that NumPy has."""
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_METADATA = "__metadata__"
_LENGTH, _ALIGNED = 8, 8
"""Bytes of the index's length, and a multiple of which is the index's."""
_PIECE = 4 * 2**20
"""Bytes of one write."""


@dataclass(frozen=True)
class Place:
    """One array within its file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""


def write(file: BinaryIO, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write row-major arrays to a file, piece by piece. Raises KeyError for a type that the format lacks."""
    # The largest type first: then each array begins at a multiple of its type's size.
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    index: dict[str, Any] = {} if metadata is None else {_METADATA: dict(metadata)}
    end = 0
    for name in order:
        array, begin = arrays[name], end
        end = begin + array.nbytes
        little = array.dtype.newbyteorder("<")
        index[name] = {"dtype": _NAMES[little], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    file.write(len(text).to_bytes(_LENGTH, "little") + text)
    for name in order:
        array = arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False)
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), _PIECE):
            file.write(data[start : start + _PIECE])


def to_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Row-major arrays as the bytes of a file. Raises KeyError for a type that the format lacks."""
    buffer = io.BytesIO()
    write(buffer, arrays)
    return buffer.getvalue()


def from_bytes(data: bytes | bytearray) -> dict[str, Array]:
    """The arrays in the bytes of a file, as views of them. Raises ValueError, KeyError or TypeError."""
    text = data[_LENGTH : _LENGTH + int.from_bytes(data[:_LENGTH], "little")]
    return {
        name: np.frombuffer(data, place.dtype, math.prod(place.shape), place.offset).reshape(place.shape)
        if math.prod(place.shape)
        else np.zeros(place.shape, place.dtype)
        for name, place in _places(text, len(data))
    }


def places(path: Path, largest_index: int) -> Iterator[tuple[str, Place]]:
    """Where each array of the file at `path` lies. Nothing but the index is read, of `largest_index` bytes at most.

    Raises ValueError, KeyError or TypeError for a file that is not whole or breaks the format.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if length > largest_index:
            raise ValueError(
                f"found an index of tensors of {length:,} bytes, expected at most {largest_index:,}"
            )
        text = file.read(length)
    return _places(text, path.stat().st_size)


def _places(text: bytes | bytearray, size: int) -> Iterator[tuple[str, Place]]:
    """The arrays by their index; a file of `size` bytes has them after it."""
    index = json_text.loads(bytes(text))
    index.pop(_METADATA, None)
    next_begin = 0
    for name, entry in sorted(index.items(), key=lambda item: item[1]["data_offsets"]):
        (begin, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), _TYPES[entry["dtype"]]
        if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
            raise ValueError("a shape or a place is no whole number")
        if begin != next_begin or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                "an array does not begin where the one before it ends, or has not the bytes of its shape"
            )
        next_begin = end
        yield name, Place(dtype, shape, _LENGTH + len(text) + begin)
    if _LENGTH + len(text) + next_begin != size:
        raise ValueError("the arrays do not fill the file")
