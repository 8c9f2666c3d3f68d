"""Prompts of the classes for a text tower, and the tower's vectors as text in the study.

A frozen text tower gives the same vector for a class in every round and at every site. So it runs
once, before the study, and its vectors, one per class, are written into the study
(docs/decisions/0010). They carry a hash of the prompts: a study whose template was changed
afterwards is refused, not trained on vectors of other words.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

PLACE = "{class}"
"""Where a template takes the class's name."""

Prompts: TypeAlias = tuple[tuple[str, ...], ...]
"""By class, in the study's order, one prompt per template."""


def fill(templates: Sequence[str], classes: Sequence[str], names: Mapping[str, str]) -> Prompts:
    """Every template for every class, by its full name if `names` has one."""
    return tuple(
        tuple(template.replace(PLACE, names.get(name, name)) for template in templates) for name in classes
    )


def fingerprint(tower: Mapping[str, Any], prompts: Prompts) -> str:
    """SHA-256 over a text tower's settings and its prompts."""
    return hashlib.sha256(json.dumps([tower, prompts], sort_keys=True).encode()).hexdigest()


def pack(vectors_CW: npt.NDArray[np.float32]) -> str:
    """Vectors as base64 of little-endian float32, class by class."""
    return base64.b64encode(np.ascontiguousarray(vectors_CW, "<f4").tobytes()).decode()


def unpack(packed: str, num_classes: int) -> npt.NDArray[np.float32]:
    """Undo `pack`: float32 (C, W). Raises ValueError that says what is wrong with the text."""
    try:
        numbers = np.frombuffer(base64.b64decode(packed, validate=True), "<f4")
    except (binascii.Error, ValueError):
        raise ValueError("found text that is not base64 of float32 numbers") from None
    if len(numbers) == 0 or len(numbers) % num_classes:
        raise ValueError(f"found {len(numbers)} numbers, which are no {num_classes} vectors of one length")
    vectors_CW = numbers.reshape(num_classes, -1).astype(np.float32)
    lengths_C = np.linalg.norm(vectors_CW.astype(np.float64), axis=1)
    if not np.allclose(lengths_C, 1, atol=1e-3):  # NaN is not close to anything
        raise ValueError(f"found vectors of length {', '.join(f'{x:.3g}' for x in lengths_C)}, expected 1")
    return vectors_CW
