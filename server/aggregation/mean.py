"""The mean weighted by examples: FedAvg's rule, which a single bad site can move as far as admission lets it.

It is the only rule that does not need the updates side by side, so the server holds one running sum for any
number of sites. Floating-point addition is not associative: a sum in the order of arrival would have other last
bits on every run. So the sum is kept in integers, whose addition is exact in any order. A product of count and
entry is rounded to a fixed grid once, and nothing is rounded again until the division at the end.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.errors import QuorumNotMet
from common.weights import Array
from server.aggregation.update import AdmittedUpdate, by_name, combine, exceed, shares_of_examples

LARGEST = 2.0**40
"""Largest product of examples and entry that the running sum can hold. Admission enforces it."""

_COARSE, _FINE = 2.0**12, 2.0**50
"""Two 64-bit numbers an entry: multiples of 2**-12 and of 2**-62, for sums of 2**10 sites at least.
The rounding error is below 2e-19 of an entry; that of float32 is 6e-8 of a weight."""

Wholes = npt.NDArray[np.int64]


class RunningMean:
    """The mean of deltas, weighted by examples (McMahan et al. 2017, arXiv:1602.05629, algorithm 1).

    Holds 16 bytes an entry of the model, four times a float32 model, and no update.
    """

    def __init__(self) -> None:
        self._sites: set[str] = set()
        self._num_examples = 0
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        self._coarse: dict[str, Wholes] = {}
        self._fine: dict[str, Wholes] = {}

    def add(self, update: AdmittedUpdate) -> None:
        """Add one update; it need not be kept after that."""
        assert update.site not in self._sites, "a site has one vote a round"
        for name, array in update.delta.items():
            if name not in self._coarse:
                self._dtypes[name] = array.dtype
                self._coarse[name] = np.zeros(array.shape, np.int64)
                self._fine[name] = np.zeros(array.shape, np.int64)
            product = update.num_examples * _COARSE * array.astype(np.float64)
            coarse = np.rint(product)
            self._coarse[name] += coarse.astype(np.int64)
            self._fine[name] += np.rint((product - coarse) * _FINE).astype(np.int64)
        self._sites.add(update.site)
        self._num_examples += update.num_examples

    def result(self) -> dict[str, Array]:
        """The mean so far. Raises QuorumNotMet if there is nothing to average."""
        if not self._sites:
            raise QuorumNotMet(
                "found no update to average, expected at least one; the sites' own logs say what stopped them"
            )
        return {name: self._mean(name) for name in self._coarse}

    def _mean(self, name: str) -> Array:
        total = self._fine[name] / _FINE
        total += self._coarse[name]
        total /= _COARSE * self._num_examples
        return np.asarray(total).astype(self._dtypes[name])


def weighted_mean(updates: Sequence[AdmittedUpdate], most: float = 1.0) -> dict[str, Array]:
    """The mean of these updates, none with a larger share than `most`.

    It is `RunningMean` to the last bit where no share is too large. Raises QuorumNotMet if there is nothing to
    average.
    """
    ordered = by_name(updates)
    if exceed([update.num_examples for update in ordered], most):
        return combine(ordered, shares_of_examples(ordered, most))
    running = RunningMean()
    for update in ordered:
        running.add(update)
    return running.result()
