"""ROC, reliability and thresholds, on four images of one class and four of others."""

import itertools
import math

import numpy as np
import pytest

from common.metrics import NUM_BINS, count
from common.metrics.thresholds import at_threshold, place_for_sensitivity, place_of, reliability, roc

OF_CLASS = (0.9, 0.8, 0.6, 0.2)
OF_OTHERS = (0.7, 0.3, 0.1, 0.1)


@pytest.fixture
def score():
    """Two classes; the probability of the second is as above."""
    second = np.array([*OF_CLASS, *OF_OTHERS])
    labels = np.array([1] * 4 + [0] * 4)
    return count(np.stack([1 - second, second], axis=1), labels, 0.0)


def test_a_threshold_is_reached_by_what_is_at_least_as_large(score):
    at = at_threshold(score.histogram_C2B[1], place_of(0.6))
    assert (at.threshold, at.found, at.of_class, at.right_no, at.of_others) == (0.6, 3, 4, 3, 4)
    assert (at.sensitivity, at.specificity) == (0.75, 0.75)
    everything, nothing = (at_threshold(score.histogram_C2B[1], place) for place in (0, NUM_BINS))
    assert (everything.sensitivity, everything.specificity) == (1, 0)
    assert (nothing.sensitivity, nothing.specificity) == (0, 1)


def test_the_highest_threshold_that_finds_enough_is_taken(score):
    histogram = score.histogram_C2B[1]
    assert place_for_sensitivity(histogram, 0.75) == place_of(0.6)  # 0.9, 0.8 and 0.6 of four
    assert place_for_sensitivity(histogram, 0.76) == place_of(0.2)
    assert place_for_sensitivity(np.zeros((2, NUM_BINS), np.int64), 0.9) is None


def test_the_roc_curve_goes_through_every_threshold(score):
    points = roc(score.histogram_C2B[1])
    # From the highest down: 0.9 0.8 (of the class), 0.7 (not), 0.6 (of it), 0.3 (not), 0.2 (of it), 0.1 0.1 (not).
    assert points == [(0, 0), (0, 0.25), (0, 0.5), (0.25, 0.5), (0.25, 0.75), (0.5, 0.75), (0.5, 1), (1, 1)]
    area = sum((x - x0) * (y + y0) / 2 for (x0, y0), (x, y) in itertools.pairwise(points))
    assert area == 13 / 16  # 4 + 4 + 3 + 2 of 16 pairs are in the right order


def test_without_images_there_is_no_curve_and_no_share():
    nothing = np.zeros((2, NUM_BINS), np.int64)
    assert roc(nothing) == []
    assert math.isnan(at_threshold(nothing, 5).sensitivity)


def test_a_reliability_bin_has_the_mean_probability_and_the_share_that_is_right(score):
    filled = [one for one in reliability(score) if one is not None]
    # Confidences 0.9 twice among others: (0.9 right), (0.9 right, 0.9 right of the others at 0.1) in one bin.
    last = filled[-1]
    assert (last.num_images, last.accuracy) == (3, 1.0)
    assert last.confidence == pytest.approx(0.9)
    assert sum(one.num_images for one in filled) == 8
