"""Counts of a model's predictions, which add up over sites.

A site sends counts; the server adds them and divides once. A mean of the sites' balanced
accuracies is not the balanced accuracy of their images, and an AUROC cannot be averaged at
all, so ratios never travel. `EMPTY + score == score`, and addition is commutative for every
integer field.

Definitions follow scikit-learn, against which each figure is tested. AUROC comes from score
histograms and is exact up to ties within one bin of width 1/NUM_BINS; calibration is the
expected calibration error of Guo et al. 2017 (arXiv:1706.04599) over equal-width bins.
"""

import math
from typing import Annotated, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from common.errors import WireError
from common.settings import Frozen

NUM_BINS = 500
NUM_CALIBRATION_BINS = 15
_MOST = 2**40

Counts: TypeAlias = Annotated[
    npt.NDArray[np.int64],
    BeforeValidator(lambda value: _counts(value)),
    PlainSerializer(lambda array: array.tolist()),
]


def _counts(value: Any) -> npt.NDArray[np.int64]:
    array = np.asarray(value)
    # The upper end keeps every sum far from int64's, where it would wrap to an innocent number.
    if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() <= _MOST):
        raise ValueError(f"counts must be whole numbers from 0 to {_MOST}")
    return array.astype(np.int64)


class Score(Frozen):
    """Counts of one model on some images; C classes, B bins."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=True)

    confusion_CC: Counts
    """Images by true class (row) and predicted class (column)."""
    histogram_C2B: Counts
    """Per class: images of other classes (0) and of this class (1) by its predicted probability."""
    calibration_2K: Counts
    """Images (0) and right predictions (1) by the probability of the predicted class."""
    confidence_K: tuple[float, ...]
    """Sum of the predicted class's probability per calibration bin."""
    loss_sum: float
    """Sum of the cross-entropies, natural logarithm."""
    num_bins: Annotated[int, Field(ge=2, le=NUM_BINS)] = NUM_BINS
    """Bins that probabilities were rounded to before they were counted, the fewest of any site."""
    left_out_C: tuple[Annotated[int, Field(ge=0, le=_MOST)], ...] = ()
    """Images by class that are not counted, because a site's policy keeps cells of few patients back. Empty: none."""
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, exclude_if=lambda noise: noise == 0
    )
    """Standard deviation of the noise on each cell of `confusion_CC`, before none is below 0 (differential privacy).
    Patients are counted then in place of images, and only there: histograms, calibration and loss are left out."""

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        num_classes = self.confusion_CC.shape[0] if self.confusion_CC.ndim else 0
        expected = {
            "confusion_CC": (num_classes, num_classes),
            "histogram_C2B": (num_classes, 2, NUM_BINS),
            "calibration_2K": (2, NUM_CALIBRATION_BINS),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        if len(self.left_out_C) not in (0, num_classes):
            raise ValueError(f"left_out_C has {len(self.left_out_C)} classes, expected {num_classes} or none")
        if len(self.confidence_K) != NUM_CALIBRATION_BINS:
            raise ValueError(
                f"confidence_K has {len(self.confidence_K)} bins, expected {NUM_CALIBRATION_BINS}"
            )
        if self.noise:
            return self
        by_class = self.confusion_CC.sum(axis=1)
        if not (
            np.array_equal(self.histogram_C2B[:, 1].sum(axis=1), by_class)
            and np.array_equal(self.histogram_C2B[:, 0].sum(axis=1), by_class.sum() - by_class)
            and self.calibration_2K[0].sum() == by_class.sum()
            and self.calibration_2K[1].sum() == np.trace(self.confusion_CC)
        ):
            raise ValueError("the counts contradict each other: they are not of the same images")
        return self

    def __add__(self, other: "Score") -> "Score":
        if self.confusion_CC.shape != other.confusion_CC.shape:
            raise WireError(
                f"scores over {len(self.confusion_CC)} and {len(other.confusion_CC)} classes cannot be added"
            )
        return Score(
            confusion_CC=self.confusion_CC + other.confusion_CC,
            histogram_C2B=self.histogram_C2B + other.histogram_C2B,
            calibration_2K=self.calibration_2K + other.calibration_2K,
            confidence_K=tuple(a + b for a, b in zip(self.confidence_K, other.confidence_K, strict=True)),
            loss_sum=self.loss_sum + other.loss_sum,
            num_bins=min(self.num_bins, other.num_bins),
            left_out_C=self._left_out_with(other),
            noise=math.hypot(self.noise, other.noise),
        )

    def _left_out_with(self, other: "Score") -> tuple[int, ...]:
        if not (self.left_out_C and other.left_out_C):
            return self.left_out_C or other.left_out_C
        return tuple(a + b for a, b in zip(self.left_out_C, other.left_out_C, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Score) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # arrays inside

    @property
    def num_images(self) -> int:
        """Images that are counted."""
        return int(self.confusion_CC.sum())

    @property
    def images_C(self) -> tuple[int, ...]:
        """Images by class, those that are left out of the counts included."""
        counted_C = self.confusion_CC.sum(axis=1).tolist()
        left_out_C = self.left_out_C or (0,) * len(counted_C)
        return tuple(a + b for a, b in zip(counted_C, left_out_C, strict=True))


def empty(num_classes: int) -> Score:
    """The score of no images, the zero of addition."""
    return Score(
        confusion_CC=np.zeros((num_classes, num_classes), np.int64),
        histogram_C2B=np.zeros((num_classes, 2, NUM_BINS), np.int64),
        calibration_2K=np.zeros((2, NUM_CALIBRATION_BINS), np.int64),
        confidence_K=(0.0,) * NUM_CALIBRATION_BINS,
        loss_sum=0.0,
    )


def count(
    probabilities_NC: npt.NDArray[np.float64],
    labels_N: npt.NDArray[np.int64],
    loss_sum: float,
    num_bins: int | None = None,
) -> Score:
    """Score of predictions: class probabilities (rows sum to 1) and true class indices.

    With `num_bins`, every probability counts as the middle of its bin, in the histograms, the confidence and the
    loss, so that no figure tells a single image's probability any closer. Which class is predicted stays exact.
    """
    num_images, num_classes = probabilities_NC.shape
    predicted_N = probabilities_NC.argmax(axis=1)
    confidence_N = probabilities_NC.max(axis=1, initial=0.0)
    confusion_CC = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion_CC, (labels_N, predicted_N), 1)

    bins_NC = places(probabilities_NC, num_bins)
    if num_bins is not None:
        probabilities_NC = _rounded(probabilities_NC, num_bins)
        confidence_N = _rounded(confidence_N, num_bins)
        loss_sum = float(-np.log(probabilities_NC[np.arange(num_images), labels_N]).sum())
    is_class_NC = (labels_N[:, None] == np.arange(num_classes)).astype(np.int64)
    histogram_C2B = np.zeros((num_classes, 2, NUM_BINS), np.int64)
    classes_NC = np.broadcast_to(np.arange(num_classes), (num_images, num_classes))
    np.add.at(histogram_C2B, (classes_NC, is_class_NC, bins_NC), 1)

    bins_N = _bin(confidence_N, NUM_CALIBRATION_BINS)
    calibration_2K = np.zeros((2, NUM_CALIBRATION_BINS), np.int64)
    np.add.at(calibration_2K[0], bins_N, 1)
    np.add.at(calibration_2K[1], bins_N[predicted_N == labels_N], 1)
    confidence_K = np.zeros(NUM_CALIBRATION_BINS)
    np.add.at(confidence_K, bins_N, confidence_N)
    return Score(
        confusion_CC=confusion_CC,
        histogram_C2B=histogram_C2B,
        calibration_2K=calibration_2K,
        confidence_K=tuple(confidence_K.tolist()),
        loss_sum=loss_sum,
        num_bins=num_bins or NUM_BINS,
    )


def places(probabilities_NC: npt.NDArray[np.float64], num_bins: int | None) -> npt.NDArray[np.int64]:
    """(N, C): the bin of the histograms that `count` counts each probability in."""
    return _bin(probabilities_NC if num_bins is None else _rounded(probabilities_NC, num_bins), NUM_BINS)


def _rounded(values: npt.NDArray[np.float64], num_bins: int) -> npt.NDArray[np.float64]:
    """The middle of each value's bin."""
    middles: npt.NDArray[np.float64] = (_bin(values, num_bins) + 0.5) / num_bins
    return middles


def _bin(values: npt.NDArray[np.float64], num_bins: int) -> npt.NDArray[np.int64]:
    return np.minimum((values * num_bins).astype(np.int64), num_bins - 1)
