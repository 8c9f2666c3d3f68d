"""Whole numbers in place of a site's numbers, whose sum is exact in any order.

Floating-point addition is not associative: a sum in the order of arrival would have other last bits on every run,
and a mask would not cancel. A product of count and entry is rounded to a fixed grid once, and nothing is rounded
again until the division at the end.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.weights import Array

LARGEST = 2.0**40
"""Largest product of count and entry that a sum can hold."""

COARSE, FINE = 2.0**12, 2.0**50
"""Two 64-bit numbers an entry: multiples of 2**-12 and of 2**-62, for sums of 2**10 sites at least.
The rounding error is below 2e-19 of an entry; that of float32 is 6e-8 of a weight."""

_PIECE = 2**15  # entries: a quarter of a MiB of float64, several of which a processor's cache holds

Wholes = npt.NDArray[np.int64]


def wholes(array: Array, count: int) -> tuple[Wholes, Wholes]:
    """`count * array` as coarse and fine whole numbers, each of the array's shape."""
    product = count * COARSE * array.astype(np.float64)
    coarse = np.rint(product)
    fine = np.rint((product - coarse) * FINE)
    return coarse.astype(np.int64), fine.astype(np.int64)


def words(array: Array, count: int) -> npt.NDArray[np.uint64]:
    """`wholes` of an array as words modulo 2**64, of shape (2, ...): coarse, then fine. A piece at a time."""
    both = np.empty((2, *array.shape), np.int64)
    coarse_sum, fine_sum, flat = both[0].reshape(-1), both[1].reshape(-1), array.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = slice(start, start + _PIECE)
        coarse_sum[piece], fine_sum[piece] = wholes(flat[piece], count)
    return both.view(np.uint64)


def fits(array: Array) -> bool:
    """Whether all entries are finite and small enough for a sum."""
    return bool(np.isfinite(array).all()) and float(np.abs(array).max(initial=0.0)) <= LARGEST


def total(arrays: Sequence[Array]) -> npt.NDArray[np.float64]:
    """Sum of one or more arrays of one shape, each rounded to the grid: the same in any order, and under masks. All of
    them must fit."""
    each = [words(array, 1).view(np.int64) for array in arrays]
    return floats(np.sum(each, axis=0).view(np.uint64))


def floats(sums: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """The numbers that sums of `words` (2, ...) stand for, where the count was 1."""
    coarse, fine = sums.view(np.int64)
    return mean(coarse, fine, 1, np.float64)


def mean(coarse: Wholes, fine: Wholes, total: int, dtype: npt.DTypeLike) -> Array:
    """Sums of `wholes`, divided by `total`, the sum of the counts."""
    value = fine / FINE
    value += coarse
    value /= COARSE * total
    return np.asarray(value).astype(dtype, copy=False)
