"""Tables of whole numbers that sites mask and add up: a score as one row of words, and counts of images.

Counts are added as they are, so their sums are exact. The sum of losses and the confidence are rounded to multiples of
2**-20. A loss that is not finite has no place in a sum: it counts as one in a word of its own, and the sum is then not
a number.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.config.types import MOST_NAMES
from common.errors import ConsiliumError, PolicyRefusal
from common.masking import grid
from common.masking.stream import Words
from common.metrics import NUM_BINS, NUM_CALIBRATION_BINS, Score
from common.weights import Array

SCORES = "scores"
"""Folder, within the arrays of a masked answer, of its tables of scores: `scores/validation`, `scores/test`."""

IMAGES = "counts/images"
"""Name of the table with the number of images that an update is of, beside the update."""

CENSUS = "counts/census"
"""Name of the table with a site's images by class: for training, validation and test, one after the other."""

TRAIN = "counts/train"
"""Name of the table with the training images by class behind a site's sums for heads."""

UNSCORED = "counts/unscored"
"""Name of the table that says of each head whether a site could not score it: 1, else 0."""

OUTLIERS = "counts/outliers"
"""Name of the table with a site's validation images by outlier score."""

COUNTS = "counts/"
"""Start of the names of tables that are no tensors and no scores."""

MOST_IMAGES = 10**8
"""Most images of one class at one site."""

UNIT = 2.0**-20
"""Step of losses and confidence."""

LARGEST = 2**32
"""Largest count, loss and confidence of one site: sums of 2**10 sites stay below 2**62, where words have room."""

_NUM_FLOATS = NUM_CALIBRATION_BINS + 1


def num_words(num_classes: int) -> int:
    """Words of a score over so many classes."""
    return sum(_sizes(num_classes)) + 2 * _NUM_FLOATS


def score_words(score: Score) -> Words:
    """A site's score as words. Raises ConsiliumError for numbers that a sum has no room for."""
    num_classes = len(score.confusion_CC)
    counts = [
        score.confusion_CC.ravel(),
        score.histogram_C2B.ravel(),
        score.calibration_2K.ravel(),
        np.array(score.left_out_C or (0,) * num_classes, np.int64),
    ]
    values = np.array([*score.confidence_K, score.loss_sum])
    finite = np.isfinite(values)
    steps = np.rint(np.where(finite, values, 0) / UNIT)
    if max(int(table.max(initial=0)) for table in counts) > LARGEST or np.abs(steps).max() > LARGEST / UNIT:
        raise ConsiliumError("a score has numbers that a masked sum has no room for; nothing is sent")
    words = [*counts, steps.astype(np.int64), (~finite).astype(np.int64)]
    return np.concatenate(words).view(np.uint64)


def pooled_score(words: Words, num_classes: int, num_bins: int) -> Score:
    """The score of all sites whose words were added. Raises ValueError for words that are of no score.

    `num_bins` is the fewest that a site rounds probabilities to.
    """
    if words.shape != (num_words(num_classes),):
        raise ValueError(f"found {words.shape} words, expected {num_words(num_classes)}")
    sums = words.view(np.int64)
    *counts, steps, odd = np.split(sums, np.cumsum([*_sizes(num_classes), _NUM_FLOATS]))
    confusion, histogram, calibration, left_out = counts
    values = _floats(steps, odd)
    return Score(
        confusion_CC=confusion.reshape(num_classes, num_classes),
        histogram_C2B=histogram.reshape(num_classes, 2, NUM_BINS),
        calibration_2K=calibration.reshape(2, NUM_CALIBRATION_BINS),
        confidence_K=tuple(values[:-1]),
        loss_sum=values[-1],
        num_bins=num_bins,
        left_out_C=tuple(left_out.tolist()) if left_out.any() else (),
    )


def sum_words(name: str, array: Array) -> Words:
    """A site's sum for heads, called `name`, as words (2, ...). Raises PolicyRefusal for numbers that a sum over sites
    has no room for.
    """
    if not grid.fits(array):
        raise PolicyRefusal(
            f"{name} has an entry that is not finite or above {grid.LARGEST:.3g}, the largest that a masked sum has "
            "room for; nothing is sent",
            reason=f"secure_aggregation: {name} has no room in a masked sum",
        )
    return grid.words(array, 1)


def opened_sum(words: Words, num_sites: int) -> npt.NDArray[np.float64]:
    """The sum of so many sites' `sum_words`. Raises ValueError for words that are of no such sums."""
    most = num_sites * grid.LARGEST * grid.COARSE
    coarse = words[0].view(np.int64)
    if coarse.size and not -most <= coarse.min() <= coarse.max() <= most:
        raise ValueError("the sums are of no numbers that sites may send")
    return grid.floats(words)


def image_sums(words: Words, num_sites: int) -> tuple[int, ...]:
    """Sums of counts of images at so many sites. Raises ValueError for words that are of no such sums."""
    sums = words.view(np.int64)
    if sums.size and not 0 <= sums.min() <= sums.max() <= num_sites * MOST_NAMES * MOST_IMAGES:
        raise ValueError("the sums are of no counts of images")
    return tuple(sums.tolist())


def _sizes(num_classes: int) -> tuple[int, ...]:
    """Words of the tables of counts."""
    return num_classes**2, num_classes * 2 * NUM_BINS, 2 * NUM_CALIBRATION_BINS, num_classes


def _floats(steps: npt.NDArray[np.int64], odd: npt.NDArray[np.int64]) -> Sequence[float]:
    return [
        math.nan if some else float(step) * UNIT
        for step, some in zip(steps.tolist(), odd.tolist(), strict=True)
    ]
