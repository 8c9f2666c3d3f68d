"""Safetensors files that are written from the arrays' own memory, and whose index is read without the arrays.

The library makes the same bytes. But its file in memory is a copy of the model, and its file on disk is written under
another name beside the one asked for, where a kill leaves it. The format is an index in JSON, its length before it, and
the arrays one after the other (https://huggingface.co/docs/safetensors).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

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
_METADATA, _ALIGNED = "__metadata__", 8
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
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        array = arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False)
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), _PIECE):
            file.write(data[start : start + _PIECE])


def places(path: Path, largest_index: int) -> Iterator[tuple[str, Place]]:
    """Where each array of the file at `path` lies. Nothing but the index is read, of `largest_index` bytes at most.

    Raises ValueError, SafetensorError, KeyError or TypeError for a file that is not whole or breaks the format.
    """
    with path.open("rb") as file:
        index_bytes = int.from_bytes(file.read(8), "little")
        if index_bytes > largest_index:
            raise ValueError(
                f"found an index of tensors of {index_bytes:,} bytes, expected at most {largest_index:,}"
            )
        index = json_text.loads(file.read(index_bytes))
    with safe_open(path, framework="numpy"):
        pass  # the library compares all shapes and places with each other and with the size of the file
    for name, entry in index.items():
        if name != _METADATA:
            begin, _ = entry["data_offsets"]
            yield name, Place(_TYPES[entry["dtype"]], tuple(entry["shape"]), 8 + index_bytes + begin)
