"""Weights as named arrays, independent of any model.

A name carries the meaning that a position in a list loses, so a layer that is missing,
renamed or reshaped is detected by comparison and never averaged by accident. Functions return
new arrays and leave their arguments alone.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field
from safetensors import SafetensorError, safe_open

from common.errors import StorageError, WireError
from common.files import written_atomically
from common.formats import tensors
from common.settings import Frozen

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]


class TensorSpec(Frozen):
    """Shape, type and role of one tensor, which both sides must agree on."""

    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=2**40)], ...], Field(max_length=16)]
    dtype: Literal["float32", "float64"]
    role: Literal["parameter", "statistic"] = "parameter"
    """`statistic`: a running mean or variance. It is averaged, never stepped by a server
    optimizer: an Adam step can make a variance negative."""


Layout: TypeAlias = Mapping[str, TensorSpec]


def first_difference(expected: Layout, found: Layout) -> str | None:
    """A sentence on the first tensor in which two layouts differ, or None."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not part of the study"
        if expected[name] != found[name]:
            return f"{name} is {_spec(found[name])}, expected {_spec(expected[name])}"
    return None


def mismatch(layout: Layout, arrays: Arrays) -> str | None:
    """A sentence on the first array that does not fit the layout, or None."""
    for name in sorted(layout.keys() | arrays.keys()):
        if name not in arrays:
            return f"{name} is missing"
        if name not in layout:
            return f"{name} is not part of the study"
        spec, array = layout[name], arrays[name]
        if array.shape != spec.shape or str(array.dtype) != spec.dtype:
            return f"{name} is {array.dtype}{list(array.shape)}, expected {_spec(spec)}"
    return None


def subtract(minuend: Arrays, subtrahend: Arrays) -> dict[str, Array]:
    """`minuend - subtrahend`, name by name. Both must have the same names."""
    _same_names(minuend, subtrahend)
    return {name: np.asarray(minuend[name] - subtrahend[name]) for name in minuend}


def add(left: Arrays, right: Arrays) -> dict[str, Array]:
    """`left + right`, name by name. Both must have the same names."""
    _same_names(left, right)
    return {name: np.asarray(left[name] + right[name]) for name in left}


def norm(arrays: Arrays, names: Iterable[str] | None = None) -> float:
    """Euclidean norm over all entries, or those of the arrays of `names`, summed in float64 in the order of names.

    Arrays that were read from safetensors bytes come in another order in every process, and a
    sum in that order would have other last bits each time.
    """
    wanted = sorted(arrays if names is None else names)
    squares = [float(np.sum(np.square(arrays[name], dtype=np.float64))) for name in wanted]
    return float(np.sqrt(sum(squares)))


def num_bytes(arrays: Arrays) -> int:
    """Bytes of the entries, without names."""
    return sum(array.nbytes for array in arrays.values())


def digest(arrays: Arrays) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in the order of names."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = contiguous(arrays[name])
        state.update(f"{name}\x1f{array.dtype.str}\x1f{array.shape}\x1e".encode())
        state.update(array.reshape(-1).data if array.size else b"")
    return state.hexdigest()


def contiguous(array: Array) -> Array:
    """`array` in row-major memory, as its bytes are hashed and written.

    Not np.ascontiguousarray, which turns a scalar of shape () into shape (1,).
    """
    return np.asarray(array, order="C")


def save_file(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write safetensors atomically: `path` is either the old file or the whole new one.

    Raises StorageError; what was at `path` before is then still there.
    """
    whole = {name: contiguous(array) for name, array in arrays.items()}
    with written_atomically(path, num_bytes(whole)) as file:
        tensors.write(file, whole, metadata)


def load_file(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of a safetensors file. Raises StorageError."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path} is not a whole safetensors file ({error}); fetch it again or give another"
        ) from error


def _same_names(left: Arrays, right: Arrays) -> None:
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())[0]
        raise WireError(f"tensor {odd} is on one side only; both must come from the same model")


def _spec(spec: TensorSpec) -> str:
    return f"{spec.dtype}{list(spec.shape)}" + (" statistic" if spec.role == "statistic" else "")
