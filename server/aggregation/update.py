"""Admitted updates, the input of every rule: one delta per site, in the order of site names.

No rule sees the order in which sites answered. Floating-point addition is not associative, so a sum in the order
of arrival would have other last bits on every run. A tie would be broken by the fastest connection.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from common import weights
from common.errors import QuorumNotMet
from common.lazy_arrays import Computed
from common.weights import Array, Arrays

_PIECE = 2**17
"""Entries of a piece: 1 MiB as float64."""


@dataclass(frozen=True)
class AdmittedUpdate:
    """One site's update of one round, after admission."""

    site: str
    num_examples: int
    """Images trained on, at least 1; the weight of `delta`. 0 under masks, where the number is masked, too."""
    delta: Arrays
    """Trained minus received. All updates of a round have the same names, shapes and dtypes."""
    statistics: frozenset[str] = frozenset()
    """Names of the running means and variances in `delta`."""
    num_steps: int = 1
    """Optimizer steps behind `delta`."""

    @cached_property
    def norm(self) -> float:
        """Euclidean norm of `delta` over its parameters."""
        return _norm(self.delta, [name for name in self.delta if name not in self.statistics])

    @cached_property
    def statistics_norm(self) -> float:
        """Euclidean norm of `delta` over its running means and variances; 0 without any."""
        return _norm(self.delta, [name for name in self.delta if name in self.statistics])


Rule: TypeAlias = Callable[[Sequence[AdmittedUpdate]], Arrays]
"""A rule may compute each array of its result when it is read."""


def by_name(updates: Sequence[AdmittedUpdate]) -> list[AdmittedUpdate]:
    """`updates` in the order of site names. Raises QuorumNotMet if there are none."""
    ordered = sorted(updates, key=lambda update: update.site)
    if not ordered:
        raise QuorumNotMet(
            "found no update to average, expected at least one; the sites' own logs say what stopped them"
        )
    assert len({update.site for update in ordered}) == len(ordered), "a site has one vote a round"
    return ordered


def shares_of_examples(ordered: Sequence[AdmittedUpdate], most: float = 1.0) -> list[float]:
    """Each site's share of all examples, none larger than `most`."""
    return limited([update.num_examples for update in ordered], most)


def limited(counts: Sequence[int], most: float) -> list[float]:
    """Shares in proportion to `counts`, none larger than `most`; they add up to 1.

    What a share has above `most` goes to the others in proportion to their counts. Where `most` is less than an
    equal share, all shares are equal.
    """
    if len(counts) * most <= 1:
        return [1 / len(counts)] * len(counts)
    free, bound = dict(enumerate(counts)), set[int]()
    while True:
        room, total = 1 - most * len(bound), sum(free.values())
        over = {place for place, count in free.items() if count * room > most * total}
        if not over:
            return [most if place in bound else room * count / total for place, count in enumerate(counts)]
        bound |= over
        for place in over:
            del free[place]


def limited_weights(counts: Sequence[int], most: float) -> list[float]:
    """Weight of an example of each site, 1 at most, with which no share of all weighted examples exceeds `most`."""
    if not counts or len(counts) == 1 or not exceed(counts, most):
        return [1.0] * len(counts)
    shares = limited(counts, most)
    scale = min(count / share for count, share in zip(counts, shares, strict=True))
    return [min(1.0, share * scale / count) for count, share in zip(counts, shares, strict=True)]


def exceed(counts: Sequence[int], most: float) -> bool:
    """Whether any share of `counts` is larger than `most`."""
    return max(counts) > most * sum(counts)


def combine(
    ordered: Sequence[AdmittedUpdate], shares: Sequence[float], *, parameters_only: bool = False
) -> Arrays:
    """The sum of `share * delta`, added in float64, in the dtype of the deltas; each array when it is read."""

    def sum_of(name: str) -> Array:
        first, *_ = deltas = [update.delta[name] for update in ordered]
        combined = np.empty(first.size, first.dtype)
        for piece in pieces(first.size):
            total = np.zeros(piece.stop - piece.start, np.float64)
            # Shares, not counts: a share never carries a finite entry past the largest float.
            for delta, share in zip(deltas, shares, strict=True):
                total += share * delta.reshape(-1)[piece].astype(np.float64)
            combined[piece] = total
        return combined.reshape(first.shape)

    left_out = ordered[0].statistics if parameters_only else frozenset[str]()
    return Computed(dict.fromkeys(name for name in ordered[0].delta if name not in left_out), sum_of)


def pieces(size: int) -> Iterator[slice]:
    """Slices of an array of `size` entries that has one dimension.

    What is computed entry by entry takes the memory of a piece beside its input and result, and stays in the cache.
    """
    for start in range(0, size, _PIECE):
        yield slice(start, min(start + _PIECE, size))


def _norm(arrays: Arrays, names: Collection[str]) -> float:
    with np.errstate(over="ignore"):  # a delta too large to square has norm inf
        return weights.norm(arrays, names)
