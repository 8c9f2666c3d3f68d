"""Figures divided from counts: accuracy, recall, F1, AUROC, calibration error."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.metrics import Score


@dataclass(frozen=True)
class Figures:
    """Figures of a report. Shares in [0, 1]; NaN where the counts do not define a figure."""

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
    if score.noise:  # some or all of the images have no histogram
        auroc_C = np.full_like(auroc_C, math.nan)
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
        loss=math.nan if score.noise else _ratio(score.loss_sum, num_images),
        accuracy=accuracy,
        balanced_accuracy=balanced,
        precision_macro=_mean(_zero(precision_C)[seen_C]),
        recall_macro=_mean(_zero(recall_C)[seen_C]),
        f1_macro=_mean(_zero(f1_C)[seen_C]),
        precision_weighted=weighted[0],
        recall_weighted=weighted[1],
        f1_weighted=weighted[2],
        auroc_macro=auroc,
        ece=math.nan if score.noise else _calibration_error(score),
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
