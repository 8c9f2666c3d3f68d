"""Coordinate-wise rules: sort the sites' values of each entry, and average the middle ones.

With fewer bad sites than are dropped at an end, each entry of the result lies between two entries of good
sites, whatever the bad ones sent (Yin et al. 2018, arXiv:1803.01498). The price is that every site has the same
weight. Sites report their counts of examples themselves, and a site that raised its weight could move the
middle.
"""

from collections.abc import Callable, Sequence

import numpy as np

from common.lazy_arrays import Computed
from common.weights import Array, Arrays
from server.aggregation.update import AdmittedUpdate, by_name, pieces


def trimmed_mean(updates: Sequence[AdmittedUpdate], *, num_dropped: Callable[[int], int]) -> Arrays:
    """Per entry, the mean without the `num_dropped(n)` largest and smallest of n (Yin et al., definition 2)."""
    ordered = by_name(updates)
    return _middle(ordered, num_dropped(len(ordered)))


def median(updates: Sequence[AdmittedUpdate]) -> Arrays:
    """Per entry, the middle one, or the mean of the two in the middle (Yin et al., definition 1)."""
    ordered = by_name(updates)
    # The median is the mean after dropping all but the middle: 2 of 5 at each end, 1 of 4.
    return _middle(ordered, (len(ordered) - 1) // 2)


def _middle(ordered: Sequence[AdmittedUpdate], num_dropped: int) -> Arrays:
    num_kept = len(ordered) - 2 * num_dropped
    assert num_kept >= 1, f"dropping {num_dropped} of {len(ordered)} at each end leaves nothing"

    def middle(name: str) -> Array:
        first, *_ = deltas = [update.delta[name] for update in ordered]
        result = np.empty(first.size, first.dtype)
        for piece in pieces(first.size):
            entries_S = np.stack([delta.reshape(-1)[piece] for delta in deltas])
            entries_S.sort(axis=0)
            kept_K = entries_S[num_dropped : num_dropped + num_kept]
            total = np.zeros(piece.stop - piece.start, np.float64)
            for entry in kept_K:
                total += (1 / num_kept) * entry.astype(np.float64)
            # Rounding alone can leave the range: a third of 0.1, three times, is more than 0.1.
            result[piece] = np.clip(total, kept_K[0], kept_K[-1])
        return result.reshape(first.shape)

    return Computed(ordered[0].delta, middle)
