"""Sums that heads need: which second moments, from which sites, added to those of all sites.

The functions are pure: which messages are sent, and what happens without a quorum, is decided by the fit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common import wire
from common.heads import Floats, square
from common.masking import grid
from common.weights import Array, Arrays
from common.wire import head_steps
from server.heads.solvers import Statistics


@dataclass(frozen=True)
class Part:
    """Sums of one site, or under masks of all sites together."""

    site: str
    """The site, or `ALL`."""
    train_counts: tuple[int, ...]
    """Training images by class behind the arrays."""
    arrays: Arrays


ALL = "all sites"
"""In place of a site's name, which none is: sums under masks are of all sites together."""


def parts_of(answers: Mapping[str, wire.HeadAnswer]) -> list[Part]:
    """The sums in the answers, in the order of names."""
    return [Part(site, answer.train_counts, answer.arrays) for site, answer in answers.items()]


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
    """Sum of `factor * array` in float64: in whole steps of 2**-62, so that it is the sum that sites under masks have,
    bit for bit. Where an entry is beyond the range of those (2**40), in the order given.
    """
    each: list[Floats] = [
        factor * np.asarray(array, np.float64) for array, factor in zip(arrays, factors, strict=True)
    ]
    if all(grid.fits(array) for array in each):
        return grid.total(each)
    total: Floats = np.sum(each, axis=0)
    return total
