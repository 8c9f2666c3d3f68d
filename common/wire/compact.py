"""Compact form of changes of weights: fewer bytes, and the same numbers on both sides.

A tensor keeps its name and shape and has numbers of another type. `int8` numbers have one scale for each tensor,
`bf16` numbers are the upper halves of float32. With `top_k` a tensor is a list of its largest entries and their places.
Rounding is stochastic: the mean over many draws is the number that was rounded. Who rounds unpacks as well, so both
sides count exactly what travelled.

What arrives is compared with the study's layout before anything is unpacked. So a message unpacks to the size of the
study's tensors and no more.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.config.transport import Precision, TransportConfig
from common.errors import WireError
from common.lazy_arrays import Computed
from common.weights import Array, Arrays, Layout

SCALES, PLACES = "consilium.scales", "consilium.places"
"""Arrays beside the tensors: a scale for each tensor, and the places of all tensors, in the order of names."""

LARGEST_INT8 = 127
_DTYPES = {"float32": "float32", "bf16": "uint16", "int8": "int8"}


@dataclass(frozen=True)
class Form:
    """How changes travel in one direction."""

    precision: Precision
    top_k: float | None = None

    @property
    def is_compact(self) -> bool:
        """False if the arrays travel as they are."""
        return self.precision != "float32" or self.top_k is not None


def up(transport: TransportConfig | None) -> Form:
    """The form of what sites send."""
    return Form("float32") if transport is None else Form(transport.up, transport.top_k)


def down(transport: TransportConfig | None) -> Form:
    """The form of what the server sends to a site that answered the round before."""
    return Form("float32" if transport is None else transport.down)


def rounded(layout: Layout) -> list[str]:
    """Names of the tensors that are rounded, sorted. Running statistics are not: a variance could become negative."""
    return sorted(
        name
        for name, spec in layout.items()
        if spec.role == "parameter" and spec.dtype == "float32" and int(np.prod(spec.shape))
    )


def pack(arrays: Arrays, layout: Layout, form: Form, random: np.random.Generator) -> dict[str, Array]:
    """The arrays that travel. A tensor with an entry that is not finite is refused by `unpack` or by admission."""
    chosen = rounded(layout)
    packed: dict[str, Array] = {name: array for name, array in arrays.items() if name not in set(chosen)}
    scales, places = [], []
    for name in chosen:
        values = arrays[name].reshape(-1)
        if form.top_k is not None:
            largest = _largest(values, _count(values.size, form.top_k))
            places.append(largest)
            values = values[largest]
        match form.precision:
            case "int8":
                packed[name], scale = _to_int8(values, random)
                scales.append(scale)
            case "bf16":
                packed[name] = _to_bf16(values, random)
            case "float32":
                packed[name] = values
        if form.top_k is None:
            packed[name] = packed[name].reshape(layout[name].shape)
    if form.precision == "int8":
        packed[SCALES] = np.array(scales, np.float32)
    if form.top_k is not None:
        packed[PLACES] = np.concatenate([*places, np.zeros(0, np.uint32)]).astype(np.uint32)
    return packed


def unpack(packed: Arrays, layout: Layout, form: Form) -> Arrays:
    """The numbers that `packed` stands for, in the layout, each array when it is read.

    Raises WireError, before anything large is made.
    """
    for problem in _problems(packed, layout, form):
        raise WireError(problem)
    return values(packed, layout, form)


def values(packed: Arrays, layout: Layout, form: Form) -> Arrays:
    """`unpack` of what this side packed itself, without the checks."""
    chosen = {name: number for number, name in enumerate(rounded(layout))}
    places: dict[str, slice] = {}
    if form.top_k is not None:
        start = 0
        for name in chosen:
            places[name] = slice(start, start + packed[name].size)
            start += packed[name].size

    def numbers_of(name: str) -> Array:
        if name not in chosen:
            return packed[name]
        numbers = packed[name].reshape(-1)
        match form.precision:
            case "int8":
                numbers = numbers.astype(np.float32)
                numbers *= packed[SCALES][chosen[name]]
            case "bf16":
                numbers = (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if form.top_k is not None:
            whole = np.zeros(math.prod(layout[name].shape), np.float32)
            whole[packed[PLACES][places[name]]] = numbers
            numbers = whole
        return numbers.reshape(layout[name].shape)

    return Computed(layout, numbers_of)


def left_over(wanted: Arrays, packed: Arrays, layout: Layout, form: Form) -> dict[str, Array]:
    """What rounding left out of the rounded tensors; 0 where that is not a finite number."""
    sent = values(packed, layout, form)
    rest = {name: np.asarray(wanted[name] - sent[name]) for name in rounded(layout)}
    return {name: np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0) for name, array in rest.items()}


def with_left_over(arrays: Arrays, rest: Arrays | None) -> dict[str, Array]:
    """`arrays` and what earlier rounds left out of them."""
    rest = rest or {}
    return {name: np.asarray(a + rest[name]) if name in rest else a for name, a in arrays.items()}


def applied(before: Arrays, change: Arrays, layout: Layout) -> dict[str, Array]:
    """Weights after a change from the server: rounded tensors are added, the others are the new ones."""
    chosen = set(rounded(layout))
    return {
        name: np.asarray(before[name] + change[name]) if name in chosen else change[name] for name in layout
    }


def _problems(packed: Arrays, layout: Layout, form: Form) -> Iterator[str]:
    expected = _expected(layout, form)
    for name in sorted(expected.keys() | packed.keys()):
        if name not in packed:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is not part of the study"
        else:
            array, (shape, dtype) = packed[name], expected[name]
            if array.shape != shape or str(array.dtype) != dtype:
                found, wanted = f"{array.dtype}{list(array.shape)}", f"{dtype}{list(shape)}"
                yield f"{name} travels as {found}, expected {wanted}"
    chosen, start = rounded(layout), 0
    if form.precision == "int8":
        for name, scale in zip(chosen, packed[SCALES].tolist(), strict=True):
            # A scale whose largest multiple is no number of float32 would unpack to infinity.
            if not 0 <= scale <= float(np.finfo(np.float32).max) / (LARGEST_INT8 + 1):
                yield (
                    f"the scale of {name} is {scale:g}, expected a finite number of 0 or more; "
                    "a smaller learning rate or clip_grad_norm may help"
                )
    for name in chosen if form.top_k is not None else ():
        size = int(np.prod(layout[name].shape))
        count = _count(size, form.top_k or 1.0)
        places = packed[PLACES][start : start + count]
        start += count
        if places[-1] >= size:
            yield f"a place in {name} is {places[-1]}, expected less than its {size} entries"
        if not (places[1:] > places[:-1]).all():
            yield f"the places in {name} repeat or are not in order"


def _expected(layout: Layout, form: Form) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every array that travels."""
    chosen = rounded(layout)
    expected = {name: (spec.shape, str(spec.dtype)) for name, spec in layout.items()}
    total = 0
    for name in chosen:
        shape = layout[name].shape
        if form.top_k is not None:
            shape = (_count(int(np.prod(shape)), form.top_k),)
            total += shape[0]
        expected[name] = shape, _DTYPES[form.precision]
    if form.precision == "int8":
        expected[SCALES] = (len(chosen),), "float32"
    if form.top_k is not None:
        expected[PLACES] = (total,), "uint32"
    return expected


def _count(size: int, share: float) -> int:
    return max(1, math.ceil(share * size))


def _largest(flat: Array, count: int) -> Array:
    """Places of the `count` entries of largest size, ascending; of equal ones the first."""
    size = np.abs(flat)
    size[np.isnan(size)] = np.inf
    if count >= size.size:
        return np.arange(size.size, dtype=np.uint32)
    least = np.partition(size, size.size - count)[size.size - count]
    above = np.flatnonzero(size > least)
    equal = np.flatnonzero(size == least)[: count - above.size]
    return np.sort(np.concatenate([above, equal])).astype(np.uint32)


def _to_int8(values: Array, random: np.random.Generator) -> tuple[Array, np.float32]:
    """Multiples of the scale, which is 1/127 of the largest entry, and the scale. NaN if it is not a finite number."""
    scale = np.float32(np.max(np.abs(values))) / np.float32(LARGEST_INT8)
    if not np.isfinite(scale):
        return np.zeros(values.shape, np.int8), np.float32(np.nan)
    if scale < np.finfo(np.float32).tiny:  # too small to divide by; all of it is left over
        return np.zeros(values.shape, np.int8), np.float32(0)
    steps = values / scale
    steps += random.random(values.shape, np.float32)
    np.floor(steps, out=steps)
    np.clip(steps, -LARGEST_INT8, LARGEST_INT8, out=steps)
    return steps.astype(np.int8), scale


def _to_bf16(values: Array, random: np.random.Generator) -> Array:
    """The upper 16 bits of each float32, one more with the probability that the lower bits say."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    draws = random.integers(0, 2**16, values.shape, np.uint32)
    up, down = (bits + draws) >> np.uint32(16), bits >> np.uint32(16)
    # Nothing finite becomes infinite, and what is not finite stays so.
    is_over = (up & np.uint32(0x7F80)) == np.uint32(0x7F80)
    return np.asarray(np.where(is_over, down, up), np.uint16)
