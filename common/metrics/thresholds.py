"""ROC and reliability curves, and sensitivity and specificity at a threshold, from score histograms.

One class against all others: an image is called positive if the class's probability is at least the threshold.
Thresholds are edges of the histogram's bins, so every count here is exact for the threshold that it names.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.metrics import NUM_BINS, Score

Histogram = npt.NDArray[np.int64]
"""(2, B): images of other classes (0) and of the class (1) by its probability."""


@dataclass(frozen=True)
class AtThreshold:
    """What one class's probability says of the images, if it has to say yes or no."""

    threshold: float
    found: int
    """Images of the class that are called positive."""
    of_class: int
    right_no: int
    """Images of other classes that are not called positive."""
    of_others: int

    @property
    def sensitivity(self) -> float:
        """Share in [0, 1] of the class's images that are found; NaN without any."""
        return self.found / self.of_class if self.of_class else math.nan

    @property
    def specificity(self) -> float:
        """Share in [0, 1] of the other images that are left alone; NaN without any."""
        return self.right_no / self.of_others if self.of_others else math.nan


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose predicted class has a probability within one bin."""

    num_images: int
    confidence: float
    """Their mean probability, in [0, 1]."""
    accuracy: float
    """Share of right predictions, in [0, 1]."""


def at_threshold(histogram_2B: Histogram, place: int) -> AtThreshold:
    """Counts at the lower edge of bin `place`; 0 calls every image positive, B none."""
    others_B, class_B = histogram_2B
    return AtThreshold(
        threshold=place / len(class_B),
        found=int(class_B[place:].sum()),
        of_class=int(class_B.sum()),
        right_no=int(others_B[:place].sum()),
        of_others=int(others_B.sum()),
    )


def place_of(threshold: float) -> int:
    """The bin edge nearest to a probability in [0, 1]."""
    return round(threshold * NUM_BINS)


def place_for_sensitivity(histogram_2B: Histogram, sensitivity: float) -> int | None:
    """The highest bin edge at which at least this share of the class is found; None if the class has no images."""
    class_B = histogram_2B[1]
    if not class_B.any():
        return None
    from_B = np.cumsum(class_B[::-1])[::-1]
    return int(np.flatnonzero(from_B >= sensitivity * class_B.sum() - 1e-9).max())


def roc(histogram_2B: Histogram) -> list[tuple[float, float]]:
    """Points (1 - specificity, sensitivity) from (0, 0) to (1, 1); empty if there is only one kind of image."""
    others_B, class_B = histogram_2B
    if not others_B.any() or not class_B.any():
        return []
    false_B = np.cumsum(others_B[::-1]) / others_B.sum()
    true_B = np.cumsum(class_B[::-1]) / class_B.sum()
    points = [(0.0, 0.0), *zip(false_B.tolist(), true_B.tolist(), strict=True)]
    return list(dict.fromkeys(points))


def reliability(score: Score) -> list[ReliabilityBin | None]:
    """Confidence and accuracy by calibration bin (Guo et al. 2017, arXiv:1706.04599); None for an empty bin."""
    counts_K, right_K = score.calibration_2K
    return [
        ReliabilityBin(int(count), confidence / int(count), int(right) / int(count)) if count else None
        for count, right, confidence in zip(counts_K, right_K, score.confidence_K, strict=True)
    ]
