"""Figures of all sites together, and intervals of a share."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binomtest

from common.errors import QuorumNotMet
from common.metrics import Score, count, empty, figures
from common.metrics.pooling import interval, per_site, pooled, total


def random_score(seed: int, num_images: int) -> Score:
    """The score of random predictions of three classes."""
    rng = np.random.default_rng(seed)
    probabilities_NC = rng.dirichlet(np.ones(3), num_images)
    labels_N = rng.integers(0, 3, num_images)
    losses_N = -np.log(probabilities_NC[np.arange(num_images), labels_N])
    return count(probabilities_NC, labels_N, float(losses_N.sum()))


@pytest.fixture
def scores() -> dict[str, Score]:
    return {
        "west": random_score(1, 40),
        "north": random_score(2, 7),
        "unseen": random_score(3, 25),
        "south": empty(3),
    }


def test_pooled_figures_are_those_of_all_images_not_the_mean_of_the_sites():
    # north: 1 of 1 right; south: 1 of 3 right; together 2 of 4, while the mean of rates is 2/3.
    north = count(np.array([[0.9, 0.1]]), np.array([0]), 0.2)
    south = count(np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]), np.array([0, 1, 1]), 0.6)
    f = pooled({"north": north, "south": south})
    assert f.accuracy == 0.5
    assert f.balanced_accuracy == 0.5  # class 0: 2 of 2, class 1: 0 of 2
    assert f.loss == pytest.approx(0.2)  # (0.2 + 0.6) / 4


def test_the_order_in_which_sites_answer_changes_no_bit(scores):
    turned = dict(reversed(scores.items()))
    assert total(turned).loss_sum == total(scores).loss_sum
    assert total(turned).confidence_K == total(scores).confidence_K
    assert repr(pooled(turned)) == repr(pooled(scores))


def test_one_site_is_its_own_pool():
    score = random_score(4, 30)
    assert pooled({"north": score}) == figures(score)


def test_sites_come_in_the_order_of_their_names(scores):
    assert list(per_site(scores)) == ["north", "south", "unseen", "west"]
    assert per_site(scores)["west"] == figures(scores["west"])


def test_no_score_at_all_is_an_error_not_a_zero():
    with pytest.raises(QuorumNotMet, match="no score of any site"):
        pooled({})


def test_an_interval_worked_by_hand():
    # z = 1.959964; 8 of 10: middle (0.8 + z²/20) / (1 + z²/10) = 0.99207 / 1.38415 = 0.71674
    # half: z / 1.38415 * sqrt(0.016 + z²/400) = 1.41601 * 0.16003 = 0.22661
    low, high = interval(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)


@pytest.mark.parametrize(("right", "images"), [(1, 7), (30, 90), (250, 251), (5, 10)])
def test_the_ends_of_an_interval_are_where_the_score_test_just_rejects(right, images):
    # Wilson's interval holds the p with |share - p| <= z * sqrt(p (1 - p) / n).
    z = NormalDist().inv_cdf(0.975)
    for p in interval(right, images):
        assert abs(right / images - p) == pytest.approx(z * math.sqrt(p * (1 - p) / images))


def test_intervals_stay_within_0_and_1_and_contain_the_share():
    for images in (1, 2, 10, 1000):
        for right in {0, 1, images // 2, images}:
            low, high = interval(right, images)
            assert 0 <= low <= right / images <= high <= 1


def test_more_images_or_less_confidence_narrow_an_interval():
    def width(*arguments):
        low, high = interval(*arguments)
        return high - low

    assert width(80, 100) > width(800, 1000)
    assert width(80, 100, 0.99) > width(80, 100, 0.95) > width(80, 100, 0.5)


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (3, 7), (8, 10), (499, 500), (123, 4567)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_the_interval_is_scipys_wilson_interval(right, images, confidence):
    expected = binomtest(right, images).proportion_ci(confidence, method="wilson")
    assert interval(right, images, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_images_there_is_no_interval():
    assert all(math.isnan(end) for end in interval(0, 0))
