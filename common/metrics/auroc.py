"""Parts of single images in an AUROC, and its variance, from score histograms.

DeLong et al. 1988 (doi:10.2307/2531595): an image's placement is the share of images of the other kind that it is
rightly ordered to. B bins, C classes.
"""

import numpy as np
import numpy.typing as npt

from common.metrics import Score

Floats = npt.NDArray[np.float64]
Histogram = npt.NDArray[np.int64]


def placements(histogram_2B: Histogram) -> tuple[Floats, Floats, float]:
    """By bin, the placement of an image of another class and of one of the class, and their mean, the AUROC; all NaN
    unless there are both kinds.
    """
    others_B, class_B = histogram_2B.astype(np.float64)
    if not (others_B.any() and class_B.any()):
        nothing_B = np.full(len(others_B), np.nan)
        return nothing_B, nothing_B, float("nan")
    of_class_B = (np.cumsum(others_B) - others_B / 2) / others_B.sum()
    of_others_B = 1 - (np.cumsum(class_B) - class_B / 2) / class_B.sum()
    return of_others_B, of_class_B, float(class_B @ of_class_B / class_B.sum())


def deviation(score: Score) -> float:
    """Standard deviation of the macro AUROC if images were independent and the classes' AUROCs moved together, which
    with two classes they do. With more classes it is the largest possible. NaN without two kinds of images.
    """
    found = [_variance(histogram_2B) for histogram_2B in score.histogram_C2B]
    there = [np.sqrt(variance) for variance in found if not np.isnan(variance)]
    return float(np.mean(there)) if there else float("nan")


def _variance(histogram_2B: Histogram) -> float:
    of_others_B, of_class_B, auroc = placements(histogram_2B)
    if np.isnan(auroc):
        return float("nan")
    others_B, class_B = histogram_2B.astype(np.float64)
    return float(
        others_B @ (of_others_B - auroc) ** 2 / others_B.sum() ** 2
        + class_B @ (of_class_B - auroc) ** 2 / class_B.sum() ** 2
    )
