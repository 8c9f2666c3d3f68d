"""Counts that add up, and the figures that follow from them.

A site sends counts; the server adds them and divides once. A mean of the sites' balanced
accuracies is not the balanced accuracy of their images, and an AUROC cannot be averaged at
all, so ratios never travel. `EMPTY + score == score`, and addition is commutative for every
integer field.

Definitions follow scikit-learn, against which each figure is tested. AUROC comes from score
histograms and is exact up to ties within one bin of width 1/NUM_BINS; calibration is the
expected calibration error of Guo et al. 2017 (arXiv:1706.04599) over equal-width bins.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, ConfigDict, PlainSerializer, model_validator

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
        if len(self.confidence_K) != NUM_CALIBRATION_BINS:
            raise ValueError(
                f"confidence_K has {len(self.confidence_K)} bins, expected {NUM_CALIBRATION_BINS}"
            )
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
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Score) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # arrays inside

    @property
    def num_images(self) -> int:
        return int(self.confusion_CC.sum())


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
    probabilities_NC: npt.NDArray[np.float64], labels_N: npt.NDArray[np.int64], loss_sum: float
) -> Score:
    """Score of predictions: class probabilities (rows sum to 1) and true class indices."""
    num_images, num_classes = probabilities_NC.shape
    predicted_N = probabilities_NC.argmax(axis=1)
    confidence_N = probabilities_NC.max(axis=1, initial=0.0)
    confusion_CC = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion_CC, (labels_N, predicted_N), 1)

    bins_NC = _bin(probabilities_NC, NUM_BINS)
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
    )


@dataclass(frozen=True)
class Figures:
    """What a report prints. Shares in [0, 1]; NaN where the counts cannot say."""

    num_images: int
    loss: float
    accuracy: float
    balanced_accuracy: float
    """Mean recall over the classes that have images."""
    precision_macro: float
    recall_macro: float
    f1_macro: float
    precision_weighted: float
    recall_weighted: float
    f1_weighted: float
    auroc_macro: float
    """One-vs-rest, mean over the classes that have both images of theirs and of others."""
    ece: float
    avg_acc_bacc_pre_rec_f1: float
    """The paper's AVG, likely reading: mean of accuracy, balanced accuracy and the weighted
    precision, recall and F1."""
    avg_acc_bacc_pre_rec_f1_auroc: float
    """The paper's AVG, second reading: the same with AUROC as a sixth figure."""
    recall_C: tuple[float, ...]
    precision_C: tuple[float, ...]
    f1_C: tuple[float, ...]
    auroc_C: tuple[float, ...]
    support_C: tuple[int, ...]


def figures(score: Score) -> Figures:
    """Divide the counts, once."""
    confusion_CC = score.confusion_CC.astype(np.float64)
    support_C, predicted_C, right_C = confusion_CC.sum(1), confusion_CC.sum(0), np.diag(confusion_CC)
    num_images = support_C.sum()
    recall_C = _divide(right_C, support_C)
    precision_C = _divide(right_C, predicted_C)
    f1_C = _divide(2 * right_C, support_C + predicted_C)
    auroc_C = np.array([_auroc(*histogram_2B) for histogram_2B in score.histogram_C2B])
    seen_C = (support_C + predicted_C) > 0  # scikit-learn's macro mean: classes in truth or prediction
    share_C = _divide(support_C, num_images)

    accuracy = _ratio(right_C.sum(), num_images)
    balanced = _mean(recall_C[support_C > 0])
    weighted = [
        float(np.nansum(share_C * _zero(values_C))) if num_images else math.nan
        for values_C in (precision_C, recall_C, f1_C)
    ]
    auroc = _mean(auroc_C[~np.isnan(auroc_C)])
    five = [accuracy, balanced, *weighted]
    return Figures(
        num_images=int(num_images),
        loss=_ratio(score.loss_sum, num_images),
        accuracy=accuracy,
        balanced_accuracy=balanced,
        precision_macro=_mean(_zero(precision_C)[seen_C]),
        recall_macro=_mean(_zero(recall_C)[seen_C]),
        f1_macro=_mean(_zero(f1_C)[seen_C]),
        precision_weighted=weighted[0],
        recall_weighted=weighted[1],
        f1_weighted=weighted[2],
        auroc_macro=auroc,
        ece=_calibration_error(score),
        avg_acc_bacc_pre_rec_f1=float(np.mean(five)),
        avg_acc_bacc_pre_rec_f1_auroc=float(np.mean([*five, auroc])),
        recall_C=tuple(recall_C.tolist()),
        precision_C=tuple(precision_C.tolist()),
        f1_C=tuple(f1_C.tolist()),
        auroc_C=tuple(auroc_C.tolist()),
        support_C=tuple(support_C.astype(int).tolist()),
    )


def _auroc(negatives_B: npt.NDArray[np.int64], positives_B: npt.NDArray[np.int64]) -> float:
    """Share of (positive, negative) pairs in the right order; a tie counts half (Mann-Whitney)."""
    num_pairs = int(negatives_B.sum()) * int(positives_B.sum())
    if num_pairs == 0:
        return math.nan
    below_B = np.cumsum(negatives_B) - negatives_B
    return float(np.sum(positives_B * (below_B + negatives_B / 2)) / num_pairs)


def _calibration_error(score: Score) -> float:
    counts_K, right_K = score.calibration_2K
    gap = np.abs(right_K - np.asarray(score.confidence_K)).sum()
    return _ratio(float(gap), float(counts_K.sum()))


def _bin(values: npt.NDArray[np.float64], num_bins: int) -> npt.NDArray[np.int64]:
    return np.minimum((values * num_bins).astype(np.int64), num_bins - 1)


def _divide(over: Any, under: Any) -> npt.NDArray[np.float64]:
    """Element-wise, NaN where nothing is divided by nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result: npt.NDArray[np.float64] = np.asarray(over / under)
    return result


def _ratio(over: float, under: float) -> float:
    return float(over / under) if under else math.nan


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


def _zero(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.nan_to_num(values, nan=0.0)
