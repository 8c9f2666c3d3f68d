"""Distance-based rules: Krum and the geometric median, computed from distances between deltas.

Krum selects the deltas that are close to most others. The geometric median is the point with the least sum of
distances. Both see a delta as one point with as many coordinates as the model has entries, and both result in
a weighted sum of deltas. So the deltas are read once for the table of distances and once for the sum. All
other steps use a table of sites times sites.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from common.errors import QuorumNotMet
from common.weights import Arrays
from server.aggregation.update import AdmittedUpdate, by_name, combine, shares_of_examples

Floats: TypeAlias = npt.NDArray[np.float64]

_STILL = 1e-12
"""Weiszfeld's iteration has converged when no share changes by more than this."""


def multi_krum(updates: Sequence[AdmittedUpdate], *, num_byzantine: int, num_selected: int) -> Arrays:
    """The mean of the `num_selected` deltas with the lowest scores (Blanchard et al. 2017, arXiv:1703.02757).

    A delta's score is the sum of its squared distances to the n - f - 2 nearest others (section
    4); equal scores are ranked by site name. With one selected it is Krum. Counts of examples are
    ignored. Raises QuorumNotMet for fewer than 2 f + 3 sites, where the paper promises nothing.
    """
    ordered = by_name(updates)
    num_sites = len(ordered)
    if num_sites < 2 * num_byzantine + 3:
        raise QuorumNotMet(
            f"Krum against {num_byzantine} bad site(s) has {num_sites} updates, expected at least "
            f"2 * {num_byzantine} + 3 = {2 * num_byzantine + 3}; raise sites.required"
        )
    squared_SS = squared_distances(ordered)
    num_near = num_sites - num_byzantine - 2
    # The first entry of a sorted row is the distance to itself, 0.
    scores_S = np.sort(squared_SS, axis=1)[:, 1 : 1 + num_near].sum(axis=1)
    best = np.argsort(scores_S, kind="stable")[:num_selected]
    selected = [ordered[place] for place in sorted(best)]
    return combine(selected, [1 / len(selected)] * len(selected))


def geometric_median(
    updates: Sequence[AdmittedUpdate], *, iterations: int, smoothing: float, most: float = 1.0
) -> Arrays:
    """The point with the least sum of distances, each weighted by the site's share of examples, `most` at most.

    Smoothed Weiszfeld from the weighted mean (Pillutla et al. 2022, arXiv:1912.13445, algorithm 2).
    """
    ordered = by_name(updates)
    weights_S = np.array(shares_of_examples(ordered, most))
    shares_S = _weiszfeld(squared_distances(ordered), weights_S, iterations, smoothing)
    return combine(ordered, [float(share) for share in shares_S])


def _weiszfeld(squared_SS: Floats, weights_S: Floats, iterations: int, smoothing: float) -> Floats:
    """The median as shares of the points, which add up to 1.

    Every iterate is a weighted mean v of the points, so its distances follow from theirs:
    |v - x_k|² = sum_j c_j |x_j - x_k|² - 1/2 sum_ij c_i c_j |x_i - x_j|² for shares c.
    """
    shares_S = weights_S
    for _ in range(iterations):
        to_points_S = (squared_SS * shares_S).sum(axis=1)
        squared_S = to_points_S - 0.5 * float((shares_S * to_points_S).sum())
        distances_S = np.sqrt(np.maximum(squared_S, 0.0))
        pulls_S = weights_S / np.maximum(distances_S, smoothing)
        before_S, shares_S = shares_S, pulls_S / pulls_S.sum()
        if np.abs(shares_S - before_S).max() <= _STILL:
            break
    return np.asarray(shares_S)


def squared_distances(ordered: Sequence[AdmittedUpdate]) -> Floats:
    """Squared Euclidean distance between each two deltas, over all tensors."""
    squared_SS = np.zeros((len(ordered), len(ordered)))
    for name in sorted(ordered[0].delta):
        entries = [update.delta[name].astype(np.float64) for update in ordered]
        for one, other in combinations(range(len(ordered)), 2):
            # Differences, not norms and products: those cancel where deltas nearly agree.
            squared_SS[one, other] += float(np.square(entries[one] - entries[other]).sum())
    return squared_SS + squared_SS.T
