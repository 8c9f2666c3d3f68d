"""Calibration counts: how sure a model is of validation images, in sums from which a temperature and sets are made.

A site sends three things about its validation images. The summed loss at each temperature of a fixed grid shows which
temperature fits best (Guo et al. 2017, arXiv:1706.04599). Reliability tables at the same temperatures show what it
improves. A histogram of -log p of the true class, by class, gives conformal sets their threshold (Sadinle et al. 2019,
doi:10.1080/01621459.2017.1395341; the score orders classes as 1 - p does).

No image has a probability of its own here: each counts as the middle of one of `num_bins` bins of -log p. The bins are
equally wide in the square root of -log p, so that 20 of them tell 0.9 from 0.8 and 0.01 from 0.005.

N images, C classes, T temperatures, K calibration bins, B bins of -log p.
"""

import math
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, ConfigDict, model_validator

from common.metrics.counts import NUM_BINS, NUM_CALIBRATION_BINS, Counts
from common.settings import Frozen

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

TEMPERATURES: tuple[float, ...] = tuple(2 ** (step / 4) for step in range(-8, 13))
"""The grid, 0.25 to 8: logits are divided by each."""

MOST_NEGATIVE_LOG = 16.0
"""End of the last bin; smaller probabilities than exp(-16) count as in it."""

_ROUNDING = 1 + 1e-9


def _finite(values: tuple[float, ...]) -> tuple[float, ...]:
    if not all(0 <= value < float("inf") for value in values):
        raise ValueError("expected finite numbers of 0 or more")
    return values


Sums = Annotated[tuple[float, ...], AfterValidator(_finite)]


class CalibrationCounts(Frozen):
    """Sums and counts of one model on a site's validation images."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=True)

    losses_T: Sums
    """Summed cross-entropy at each temperature, natural logarithm."""
    reliability_T2K: Counts
    """At each temperature: images (0) and right predictions (1) by the probability of the predicted class."""
    confidence_TK: tuple[Sums, ...]
    """At each temperature: the sum of the predicted class's probability per bin."""
    histogram_CB: Counts
    """Images by true class and by the bin of -log p of that class, at temperature 1."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        num_temperatures = len(TEMPERATURES)
        if len(self.losses_T) != num_temperatures:
            raise ValueError(f"losses_T has {len(self.losses_T)} temperatures, expected {num_temperatures}")
        if self.reliability_T2K.shape != (num_temperatures, 2, NUM_CALIBRATION_BINS):
            raise ValueError(f"reliability_T2K has shape {self.reliability_T2K.shape}")
        if [len(row) for row in self.confidence_TK] != [NUM_CALIBRATION_BINS] * num_temperatures:
            raise ValueError("confidence_TK is not a row of bins for each temperature")
        if self.histogram_CB.ndim != 2 or not 2 <= self.histogram_CB.shape[1] <= NUM_BINS:
            raise ValueError(
                f"histogram_CB has shape {self.histogram_CB.shape}, expected 2 to {NUM_BINS} bins"
            )
        images_T, right_T = self.reliability_T2K.sum(axis=2).T
        if (images_T != self.num_images).any() or (right_T != right_T[0]).any():
            raise ValueError("the counts contradict each other: they are not of the same images")
        if (self.reliability_T2K[:, 1] > self.reliability_T2K[:, 0]).any():
            raise ValueError("more predictions are right than there are images in a bin")
        largest_T = MOST_NEGATIVE_LOG / np.array(TEMPERATURES) + math.log(len(self.histogram_CB))
        if (np.array(self.losses_T) > self.num_images * largest_T * _ROUNDING).any():
            raise ValueError("a loss is larger than the images can have")
        if (np.array(self.confidence_TK) > self.reliability_T2K[:, 0] * _ROUNDING).any():
            raise ValueError("a sum of probabilities is larger than its number of images")
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CalibrationCounts) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # arrays inside

    @property
    def num_images(self) -> int:
        """Validation images that are counted."""
        return int(self.histogram_CB.sum())

    @property
    def images_C(self) -> tuple[int, ...]:
        """The same by true class."""
        return tuple(self.histogram_CB.sum(axis=1).tolist())


def calibration_counts(probabilities_NC: Floats, labels_N: Numbers, num_bins: int) -> CalibrationCounts:
    """Counts of predictions: class probabilities (rows sum to 1) and true class indices."""
    num_images, num_classes = probabilities_NC.shape
    rows_N, predicted_N = np.arange(num_images), probabilities_NC.argmax(axis=1)
    is_right_N = predicted_N == labels_N
    bins_NC = bins_of(probabilities_NC, num_bins)
    logs_NC = -(((bins_NC + 0.5) / num_bins) ** 2) * MOST_NEGATIVE_LOG
    losses: list[float] = []
    tables, sums = np.zeros((len(TEMPERATURES), 2, NUM_CALIBRATION_BINS), np.int64), []
    for place, temperature in enumerate(TEMPERATURES):
        shares_NC = tempered(np.exp(logs_NC), temperature)
        losses.append(float(-np.log(shares_NC[rows_N, labels_N]).sum()))
        confidence_N = shares_NC[rows_N, predicted_N]
        at_N = np.minimum((confidence_N * NUM_CALIBRATION_BINS).astype(np.int64), NUM_CALIBRATION_BINS - 1)
        tables[place, 0] = np.bincount(at_N, minlength=NUM_CALIBRATION_BINS)
        tables[place, 1] = np.bincount(at_N[is_right_N], minlength=NUM_CALIBRATION_BINS)
        sums.append(tuple(np.bincount(at_N, confidence_N, NUM_CALIBRATION_BINS).tolist()))
    histogram_CB = np.zeros((num_classes, num_bins), np.int64)
    np.add.at(histogram_CB, (labels_N, bins_NC[rows_N, labels_N]), 1)
    return CalibrationCounts(
        losses_T=tuple(abs(loss) for loss in losses),  # no image: the sum is -0.0
        reliability_T2K=tables,
        confidence_TK=tuple(sums),
        histogram_CB=histogram_CB,
    )


def bins_of(probabilities: Floats, num_bins: int) -> Numbers:
    """Bin of -log p of each probability; bin b ends at `upper_edges`[b], which belongs to the next one."""
    negative_logs = -np.log(np.clip(probabilities, np.exp(-MOST_NEGATIVE_LOG), 1.0))
    places = (np.sqrt(negative_logs / MOST_NEGATIVE_LOG) * num_bins).astype(np.int64)
    bins: Numbers = np.minimum(places, num_bins - 1)
    return bins


def upper_edges(num_bins: int) -> tuple[float, ...]:
    """Largest -log p of each bin."""
    return tuple(MOST_NEGATIVE_LOG * ((place + 1) / num_bins) ** 2 for place in range(num_bins))


def tempered(probabilities_NC: Floats, temperature: float) -> Floats:
    """Probabilities whose logits are divided by the temperature; rows sum to 1.

    Exact for a softmax: log p is the logit but for a constant.
    """
    logs_NC = np.log(np.maximum(probabilities_NC, np.finfo(np.float64).tiny)) / temperature
    powers_NC = np.exp(logs_NC - logs_NC.max(axis=1, keepdims=True))
    shares_NC: Floats = powers_NC / powers_NC.sum(axis=1, keepdims=True)
    return shares_NC
