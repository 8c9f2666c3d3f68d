"""One temperature for a federation, from losses that sites summed on a fixed grid (Guo et al. 2017, arXiv:1706.04599).

The loss is smooth in the logarithm of the temperature, so a parabola through the lowest point of the grid and its two
neighbours gives the minimum between them. Reliability at that temperature is interpolated between the two tables
beside it.

T temperatures, K calibration bins.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from common.metrics.calibration import TEMPERATURES, CalibrationCounts
from common.settings import Frozen


class Reliability(Frozen):
    """How often predictions are right, by their probability, in equally wide bins from 0 to 1."""

    images_K: tuple[Annotated[float, Field(ge=0)], ...]
    """Images; no whole numbers where the table was interpolated between two temperatures."""
    right_K: tuple[Annotated[float, Field(ge=0)], ...]
    confidence_K: tuple[Annotated[float, Field(ge=0)], ...]
    """Sum of the predicted class's probability."""
    loss: Annotated[float, Field(ge=0)]
    """Mean cross-entropy, natural logarithm."""

    @property
    def ece(self) -> float:
        """Expected calibration error, a share; NaN without images."""
        gaps = sum(abs(right - sure) for right, sure in zip(self.right_K, self.confidence_K, strict=True))
        return gaps / sum(self.images_K) if sum(self.images_K) else math.nan


class TemperatureFit(Frozen):
    """The temperature that fits validation images best."""

    temperature: Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[-1])]
    at_end: bool
    """True: the end of the grid fits best, so a temperature beyond it may fit better."""
    before: Reliability
    """At temperature 1."""
    after: Reliability
    """At `temperature`, on the images that it was fitted on."""


def fit_temperature(counts: Sequence[CalibrationCounts]) -> TemperatureFit:
    """The temperature with the lowest loss over all sites together; there is at least one image."""
    losses_T = np.sum([one.losses_T for one in counts], axis=0)
    lowest = int(np.argmin(losses_T))
    at_end = lowest in (0, len(TEMPERATURES) - 1)
    offset, least = (0.0, float(losses_T[lowest])) if at_end else _vertex(*losses_T[lowest - 1 : lowest + 2])
    place, one = lowest + offset, TEMPERATURES.index(1.0)
    return TemperatureFit(
        temperature=TEMPERATURES[0] * (TEMPERATURES[1] / TEMPERATURES[0]) ** place,
        at_end=at_end,
        before=_reliability(counts, float(one), float(losses_T[one])),
        after=_reliability(counts, place, least),
    )


def _vertex(left: float, middle: float, right: float) -> tuple[float, float]:
    """Lowest point of the parabola through three points one step apart: its place from the middle one, its value."""
    bend, tilt = left - 2 * middle + right, left - right
    return (0.0, middle) if bend <= 0 else (0.5 * tilt / bend, max(0.0, middle - tilt**2 / (8 * bend)))


def _reliability(counts: Sequence[CalibrationCounts], place: float, loss_sum: float) -> Reliability:
    """The pooled table at a place of the grid, interpolated between its two neighbours."""
    low = min(math.floor(place), len(TEMPERATURES) - 2)
    share = place - low

    def between(values_T: object) -> list[float]:
        array = np.asarray(values_T, np.float64)
        mixed: list[float] = ((1 - share) * array[low] + share * array[low + 1]).tolist()
        return mixed

    tables = np.sum([one.reliability_T2K for one in counts], axis=0)
    return Reliability(
        images_K=tuple(between(tables[:, 0])),
        right_K=tuple(between(tables[:, 1])),
        confidence_K=tuple(between(np.sum([one.confidence_TK for one in counts], axis=0))),
        loss=loss_sum / sum(one.num_images for one in counts),
    )
