"""Sets of classes that hold the true one with a stated chance (split conformal, Vovk et al. 2005; Angelopoulos and
Bates 2021, arXiv:2107.07511, with the score of Sadinle et al. 2019).

The nonconformity of an image is -log p of its true class. Among n validation images the threshold is the k-th smallest
one, k = ceil((n + 1) x coverage). A set holds every class whose -log p is at most the threshold, and the predicted one.
A new image that is exchangeable with the n has its class in its set with at least the stated chance, over the draw of
all n + 1. Counts know a score up to its bin, so the bin's upper edge is taken: the threshold is never too low.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from common.errors import ConfigError
from common.metrics.calibration import CalibrationCounts, upper_edges
from common.settings import Frozen


class ScoreCounts(Frozen):
    """Validation images of one site by their nonconformity, in the bins that the site's policy allows."""

    images_B: tuple[Annotated[int, Field(ge=0)], ...]

    @property
    def num_images(self) -> int:
        return sum(self.images_B)


def of_counts(counts: CalibrationCounts) -> ScoreCounts:
    """The histogram over all classes."""
    return ScoreCounts(images_B=tuple(counts.histogram_CB.sum(axis=0).tolist()))


class NoThresholdError(Exception):
    """The counts do not support a threshold."""

    def __init__(self, *, is_open: bool) -> None:
        super().__init__("the last bin, which has no end" if is_open else "too few images")
        self.is_open = is_open
        """True: it would lie in a last bin. False: there are too few images."""


def smallest_edge(sites: Sequence[tuple[Sequence[float], Sequence[int]]], coverage: float) -> float:
    """The smallest edge of a bin below which a new score lies with a chance of `coverage` or more.

    `sites` are the upper edges of each site's bins and its images in them. A site's last bin has no end. Raises
    NoThresholdError.
    """
    edges = [
        (end, number, place == len(ends) - 1)
        for ends, numbers in sites
        for place, (end, number) in enumerate(zip(ends, numbers, strict=True))
    ]
    num_images = sum(number for _, number, _ in edges)
    # Rounding must not turn 0.9 x 10 into one more than 9.
    rank = math.ceil(round((num_images + 1) * coverage, 9))
    if rank > num_images:
        raise NoThresholdError(is_open=False)
    seen = 0
    for end, number, is_last in sorted(edges):
        seen += number
        if seen >= rank:
            if is_last:
                break
            return end
    raise NoThresholdError(is_open=True)


def threshold(sites: Mapping[str, ScoreCounts], coverage: float) -> float:
    """Largest -log p of a class in a set. Raises ConfigError for a coverage that the counts cannot support."""
    if not 0 < coverage < 1:
        raise ConfigError(f"--coverage: found {coverage:g}, expected a share between 0 and 1, such as 0.9")
    try:
        return smallest_edge(
            [(upper_edges(len(one.images_B)), one.images_B) for one in sites.values()], coverage
        )
    except NoThresholdError as error:
        if error.is_open:
            raise ConfigError(
                f"--coverage: found {coverage:g}, but for more than {100 * (1 - coverage):g} % of the validation "
                "images the true class has next to no probability, so every set would hold every class; ask for less"
            ) from None
    num_images = sum(one.num_images for one in sites.values())
    raise ConfigError(
        f"--coverage: found {coverage:g}, and {num_images} validation image(s) support at most "
        f"{_floor(num_images / (num_images + 1)):g}; ask for less"
    )


def _floor(share: float) -> float:
    return math.floor(share * 1000) / 1000


def sets(probabilities_NC: npt.NDArray[np.float64], largest: float) -> npt.NDArray[np.bool_]:
    """(N, C): which classes are in the set of each image. `probabilities_NC` have no temperature."""
    inside_NC: npt.NDArray[np.bool_] = probabilities_NC >= math.exp(-largest)
    inside_NC[np.arange(len(inside_NC)), probabilities_NC.argmax(axis=1)] = True
    return inside_NC


def describe(sites: Mapping[str, ScoreCounts], coverage: float) -> str:
    """What the guarantee is, and its condition, for a person."""
    num_images = sum(one.num_images for one in sites.values())
    return (
        f"the set holds the true class with a chance of {100 * coverage:g} % or more for images like the {num_images} "
        f"validation images of {', '.join(sites)}, that is, exchangeable with them: patients, devices and choice of "
        "images of the same kind. For other hospitals, and for each class by itself, nothing is guaranteed"
    )
