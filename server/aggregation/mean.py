"""The mean weighted by examples: FedAvg's rule, which a single bad site can move as far as admission lets it.

It is the only rule that does not need the updates side by side, so the server holds one running sum for any
number of sites. Floating-point addition is not associative: a sum in the order of arrival would have other last
bits on every run. So the sum is kept in whole numbers (`common/masking/grid.py`).
"""

from collections.abc import Sequence

import numpy as np

from common.errors import QuorumNotMet
from common.lazy_arrays import Computed
from common.masking import grid
from common.masking.grid import LARGEST
from common.weights import Array, Arrays
from server.aggregation.update import AdmittedUpdate, by_name, combine, exceed, pieces, shares_of_examples

__all__ = ["LARGEST", "RunningMean", "weighted_mean"]


class RunningMean:
    """The mean of deltas, weighted by examples (McMahan et al. 2017, arXiv:1602.05629, algorithm 1).

    Holds 16 bytes an entry of the model, four times a float32 model, and no update.
    """

    def __init__(self) -> None:
        self._sites: set[str] = set()
        self._num_examples = 0
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        self._sums: dict[str, _ExactSum] = {}

    def add(self, update: AdmittedUpdate) -> None:
        """Add one update; it need not be kept after that."""
        assert update.site not in self._sites, "a site has one vote a round"
        for name, array in update.delta.items():
            if name not in self._sums:
                self._dtypes[name] = array.dtype
                self._sums[name] = _ExactSum(array.shape)
            self._sums[name].add(update.num_examples, array)
        self._sites.add(update.site)
        self._num_examples += update.num_examples

    def result(self) -> Arrays:
        """The mean so far, each array when it is read. Raises QuorumNotMet if there is nothing to average."""
        if not self._sites:
            raise QuorumNotMet(
                "found no update to average, expected at least one; the sites' own logs say what stopped them"
            )
        return Computed(self._sums, self._mean)

    def _mean(self, name: str) -> Array:
        return self._sums[name].mean(self._num_examples).astype(self._dtypes[name])


class _ExactSum:
    """The exact sum of count times entry, for each entry of one array."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._coarse: grid.Wholes = np.zeros(shape, np.int64)
        self._fine: grid.Wholes = np.zeros(shape, np.int64)

    def add(self, count: int, array: Array) -> None:
        coarse_sum, fine_sum, flat = self._coarse.reshape(-1), self._fine.reshape(-1), array.reshape(-1)
        for piece in pieces(flat.size):
            coarse, fine = grid.wholes(flat[piece], count)
            coarse_sum[piece] += coarse
            fine_sum[piece] += fine

    def mean(self, num_examples: int) -> Array:
        """The sum, divided by the examples, as float64."""
        return grid.mean(self._coarse, self._fine, num_examples, np.float64)


def weighted_mean(updates: Sequence[AdmittedUpdate], most: float = 1.0) -> Arrays:
    """The mean of these updates, none with a larger share than `most`, each array when it is read.

    It is `RunningMean` to the last bit where no share is too large, and its sums are those of a piece of one array.
    Raises QuorumNotMet if there is nothing to average.
    """
    ordered = by_name(updates)
    if exceed([update.num_examples for update in ordered], most):
        return combine(ordered, shares_of_examples(ordered, most))
    num_examples = sum(update.num_examples for update in ordered)

    def mean(name: str) -> Array:
        first, *_ = deltas = [update.delta[name] for update in ordered]
        result = np.empty(first.size, first.dtype)
        for piece in pieces(first.size):
            total = _ExactSum((piece.stop - piece.start,))
            for update, delta in zip(ordered, deltas, strict=True):
                total.add(update.num_examples, delta.reshape(-1)[piece])
            result[piece] = total.mean(num_examples)
        return result.reshape(first.shape)

    return Computed(ordered[0].delta, mean)
