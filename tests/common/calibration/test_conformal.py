"""Sets with a stated coverage: thresholds worked by hand, and the share of sets that hold the true class."""

import math

import numpy as np
import pytest

from common.calibration.conformal import ScoreCounts, describe, of_counts, sets, threshold
from common.errors import ConfigError
from common.metrics.calibration import calibration_counts, upper_edges

FOUR = ScoreCounts(images_B=(6, 3, 1, 0))
"""Ten images; the four bins end at -log p = 1, 4, 9 and 16."""


@pytest.mark.parametrize(
    ("coverage", "end"),
    [
        (0.5, 1.0),  # ceil(11 x 0.5) = 6: the 6th smallest is in the first bin
        (0.6, 4.0),  # ceil(6.6) = 7
        (0.8, 4.0),  # ceil(8.8) = 9
        (0.9, 9.0),  # ceil(9.9) = 10
    ],
)
def test_the_threshold_is_the_upper_edge_of_the_bin_with_the_right_rank(coverage, end):
    assert threshold({"north": FOUR}, coverage) == end


def test_sites_with_other_bins_are_pooled_by_their_edges():
    # Two bins end at 4 and 16: 5 of 15 images are known to be below 4 and no closer.
    assert threshold({"north": FOUR, "south": ScoreCounts(images_B=(5, 0))}, 0.3) == 1.0
    assert threshold({"north": FOUR, "south": ScoreCounts(images_B=(5, 0))}, 0.8) == 4.0


@pytest.mark.parametrize(
    ("coverage", "said"),
    [
        (0.95, r"10 validation image\(s\) support at most 0.909"),
        (1.0, "a share between 0 and 1"),
        (0.0, "a share between 0 and 1"),
        (math.nan, "a share between 0 and 1"),
    ],
)
def test_a_coverage_that_the_counts_cannot_support_is_refused(coverage, said):
    with pytest.raises(ConfigError, match=said):
        threshold({"north": FOUR}, coverage)


def test_a_coverage_whose_sets_would_hold_every_class_is_refused():
    with pytest.raises(ConfigError, match="every set would hold every class"):
        threshold({"north": ScoreCounts(images_B=(5, 0, 0, 5))}, 0.8)


def test_no_counts_support_no_coverage():
    with pytest.raises(ConfigError, match=r"0 validation image\(s\) support at most 0;"):
        threshold({}, 0.9)


def test_a_set_holds_the_predicted_class_even_if_it_is_unlikely():
    probabilities_NC = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    inside_NC = sets(probabilities_NC, -math.log(0.5))
    assert inside_NC.tolist() == [[True, False, False], [True, False, False]]
    assert sets(probabilities_NC, -math.log(0.2)).tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_hold_the_true_class_as_often_as_stated(coverage):
    """Over 300 draws of 60 validation images and 60 new ones; a coarse histogram only makes the sets larger."""
    rng, held = np.random.default_rng(11), []
    for _ in range(300):
        logits_NC = rng.normal(size=(120, 5)) * 1.5
        shares_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
        labels_N = (shares_NC.cumsum(axis=1) > rng.random((120, 1))).argmax(axis=1)
        wrong_NC = shares_NC**2 / (shares_NC**2).sum(
            axis=1, keepdims=True
        )  # overconfident, and still covered
        counts = of_counts(calibration_counts(wrong_NC[:60], labels_N[:60], 20))
        inside_NC = sets(wrong_NC[60:], threshold({"north": counts}, coverage))
        held.append(inside_NC[np.arange(60), labels_N[60:]].mean())
    assert coverage - 0.01 < np.mean(held) < coverage + 0.08


def test_the_guarantee_names_its_images_and_its_condition():
    text = describe({"north": FOUR}, 0.9)
    assert "90 % or more for images like the 10 validation images of north" in text
    assert "exchangeable" in text
    assert upper_edges(4)[-1] == 16
