"""Bad answers: what a site that is broken, or worse, could say instead of the truth.

Each takes the header and the tensors of an honest answer and returns others. Headers are edited
as JSON, so that they can say what no honest code could build.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from common.wire import codec

Header: TypeAlias = dict[str, Any]
Tensors: TypeAlias = dict[str, Any]
Spoil: TypeAlias = Callable[[Header, Tensors], tuple[Header, Tensors]]


@dataclass(frozen=True)
class BadAnswer:
    """One way to be wrong, and what the server must say of it."""

    done: str
    expected: str
    """Regular expression, found in the server's line on this site and round."""
    spoil: Spoil
    outcome: str = "refused"


def _entry(value: float) -> Spoil:
    def spoil(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
        name = min(tensors)
        tensors[name] = tensors[name].copy()
        tensors[name].flat[0] = value
        return header, tensors

    return spoil


def _field(**changes: Any) -> Spoil:
    return lambda header, tensors: (header | changes, tensors)


def _shape(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    name = min(tensors)
    return header, tensors | {name: np.zeros((1,), tensors[name].dtype)}


def _extra(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    return header, tensors | {"backdoor.weight": np.zeros(3, np.float32)}


def _lacking(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    return header, {name: array for name, array in tensors.items() if name != min(tensors)}


def _whole_numbers(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    name = min(tensors)
    return header, tensors | {name: tensors[name].astype(np.int64)}


def _longer(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    """Its parameters alone: running statistics a thousand times as far off are refused as such."""
    return header, {
        name: array if ".running_" in name else (1000 * array).astype(array.dtype)
        for name, array in tensors.items()
    }


def _variance(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    return header, {
        name: array - array.dtype.type(1e6) if name.endswith("running_var") else array
        for name, array in tensors.items()
    }


BAD: dict[str, BadAnswer] = {
    "NaN": BadAnswer("one entry of the delta is NaN", "1 of .* entries of .* are not finite", _entry(np.nan)),
    "Inf": BadAnswer("one entry is infinite", "1 of .* entries of .* are not finite", _entry(np.inf)),
    "shape": BadAnswer("a tensor of shape (1,), which numpy would broadcast", r"is float32\[1\], expected", _shape),
    "extra name": BadAnswer("a tensor that the model has not", "backdoor.weight", _extra),
    "missing name": BadAnswer("a tensor of the model is left out", "is missing", _lacking),
    "int tensor": BadAnswer("a tensor of int64", "int64", _whole_numbers),
    "weight 0": BadAnswer("claims 0 examples", "claims 0 examples, expected 1 to", _field(num_examples=0)),
    "weight -1": BadAnswer(
        "claims -1 examples", "num_examples: greater_than_equal", _field(num_examples=-1), "failed"
    ),
    "weight 1e12": BadAnswer(
        "claims 10^12 examples", "claims 1000000000000 examples", _field(num_examples=10**12)
    ),
    "norm x1000": BadAnswer("the delta, a thousand times as long", "the median of the round's other", _longer),
    "variance": BadAnswer("running variances far below 0", "and it is a variance", _variance),
    "loss NaN": BadAnswer("its training loss is NaN", "training loss is nan", _field(train_loss=float("nan"))),
    "stale plan": BadAnswer(
        "the answer carries the id of another plan", "it answers plan 0123, expected", _field(plan_id="0123")
    ),
}  # fmt: skip


def spoiled(answer: bytes, name: str) -> bytes:
    """`answer` made bad in the way that `name` names."""
    header, tensors = codec.split(answer)
    fields, changed = BAD[name].spoil(json.loads(header), dict(tensors))
    return codec.join(json.dumps(fields), changed)
