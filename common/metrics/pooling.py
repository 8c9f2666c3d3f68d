"""Figures from the counts of several sites, per site and for all of them together.

The counts are added first and divided once: the pooled figure is the one that a single test
set of all the sites' images would give, which no mean of the sites' figures is. Sites are
added in the order of their names, so the sum of losses has the same last bit on every run.
"""

import math
from collections.abc import Mapping
from functools import reduce
from operator import add
from statistics import NormalDist

from common.errors import QuorumNotMet
from common.metrics import Figures, Score, figures

POOLED = "pooled only"
"""In place of a site's name, which none is: the counts of all sites together, where masks hide those of each."""


def total(scores: Mapping[str, Score]) -> Score:
    """The counts of all sites. Raises QuorumNotMet if no site has scored the model."""
    if not scores:
        raise QuorumNotMet(
            "found no score of any site, expected at least one; the sites' logs have the reason"
        )
    return reduce(add, (scores[site] for site in sorted(scores)))


def pooled(scores: Mapping[str, Score]) -> Figures:
    """The figures over the images of all sites together."""
    return figures(total(scores))


def per_site(scores: Mapping[str, Score]) -> dict[str, Figures]:
    """The figures of each site, in the order of site names; none of those that are known pooled only."""
    return {site: figures(scores[site]) for site in sorted(scores) if site != POOLED}


def interval(num_right: int, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Holds its level for few images and for shares near 0 or 1, where the textbook interval
    leaves [0, 1]. Both ends are NaN without images. It treats images as independent, so it is
    too narrow where a patient or lesion has several.
    """
    if num_images == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = num_right / num_images
    stretch = 1 + z**2 / num_images
    middle = (share + z**2 / (2 * num_images)) / stretch
    half = z / stretch * math.sqrt(share * (1 - share) / num_images + z**2 / (4 * num_images**2))
    # Rounding may leave an end of 0 or 1 a last bit on the wrong side of the share.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
