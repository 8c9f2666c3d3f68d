"""Ratios of three counts a class: right answers, images and predictions.

The same figures as in `figures.py`, as smooth functions of the counts alone. The arrays may be complex, so that a
derivative follows without rounding from one evaluation (Squire and Trapp 1998, doi:10.1137/S003614459631241X).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[Any]


def ratios(right_C: Counts, images_C: Counts, predicted_C: Counts) -> Mapping[str, Any]:
    """Figures by the names that `Figures` has for them; there must be an image."""
    total = images_C.sum()
    has_images_C, is_seen_C = images_C.real > 0, (images_C + predicted_C).real > 0
    recall_C = _divide(right_C, images_C)
    precision_C = _divide(right_C, predicted_C)
    f1_C = _divide(2 * right_C, images_C + predicted_C)
    share_C = images_C / total
    accuracy, balanced = right_C.sum() / total, recall_C[has_images_C].mean()
    weighted = [(share_C * values_C).sum() for values_C in (precision_C, recall_C, f1_C)]
    return {
        "accuracy": accuracy,
        "balanced_accuracy": balanced,
        "f1_macro": f1_C[is_seen_C].mean(),
        "precision_weighted": weighted[0],
        "recall_weighted": weighted[1],
        "f1_weighted": weighted[2],
        "avg_acc_bacc_pre_rec_f1": (accuracy + balanced + sum(weighted)) / 5,
    }


RATIOS = (
    "accuracy", "balanced_accuracy", "f1_macro", "precision_weighted", "recall_weighted", "f1_weighted",
    "avg_acc_bacc_pre_rec_f1",
)  # fmt: skip
"""Names of the ratios."""


def gradient(name: str, counts_3C: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(3C): the derivative of one ratio by right answers, images and predictions of each class."""
    step, result = 1e-30, np.zeros(counts_3C.size)
    for place in range(counts_3C.size):
        moved = counts_3C.astype(np.complex128).ravel()
        if moved[place] == 0:
            continue  # a count that is 0 in sum is 0 for each patient: it does not move
        moved[place] += 1j * step
        result[place] = ratios(*moved.reshape(3, -1))[name].imag / step
    return result


def _divide(over: Counts, under: Counts) -> Counts:
    """Element-wise; 0 where nothing is divided by nothing."""
    result = np.zeros(over.shape, np.result_type(over, under, np.float64))
    np.divide(over, under, out=result, where=under.real > 0)
    return result
