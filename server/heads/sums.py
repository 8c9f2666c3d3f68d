"""Sums that heads need: which second moments, from which sites, added to those of all sites.

The functions are pure: which messages are sent, and what happens without a quorum, is decided by the fit.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from common import wire
from common.heads import Floats, square
from common.weights import Array
from common.wire import head_steps
from server.heads.solvers import Statistics


def width_of(answer: wire.HeadAnswer, view: str) -> int:
    """Width of the features behind an answer's sums on a view."""
    return int(answer.arrays[f"statistics/{view}/sums"].shape[1])


def usual_width(answers: Mapping[str, wire.HeadAnswer], view: str) -> int:
    """Width of the features at most sites, the smaller one in a tie. The server does not know it before."""
    widths = [width_of(answer, view) for answer in answers.values()]
    return max(sorted(set(widths)), key=widths.count)


def added(
    parts: Sequence[Mapping[str, Array]],
    request: head_steps.ViewRequest,
    counts_C: Array,
    factors: Sequence[float],
) -> Statistics:
    """Sums over all sites from the arrays of each, in the order given, each weighed by its factor."""

    def total(kind: str) -> Floats:
        return weighed((p[f"statistics/{request.name}/{kind}"] for p in parts), factors)

    sums_CD = total("sums")
    return Statistics(
        counts_C,
        sums_CD,
        total("squares") if request.squares else None,
        square(total("moments"), sums_CD.shape[1]) if request.moments != "none" else None,
        np.asarray(request.class_weights),
    )


def weighed(arrays: Iterable[Array], factors: Sequence[float]) -> Floats:
    """Sum of `factor * array`, in float64 and in the order given. A factor of 1 changes no bit."""
    each = [np.asarray(array, np.float64) for array in arrays]
    total: Floats = np.sum(
        [array if factor == 1 else factor * array for array, factor in zip(each, factors, strict=True)],
        axis=0,
    )
    return total
