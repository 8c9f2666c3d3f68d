"""Two classifiers on the same images, by hand."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from client.heads.scores import bootstrap
from common.metrics.paired import gain, group_sums, mcnemar, pair

# Class 0: four images of three patients; class 1: two images of two patients.
LABELS = np.array([0, 0, 0, 0, 1, 1])
GROUPS = ("p", "p", "q", "r", "s", "t")
SOFTMAX = np.array([True, True, False, False, True, False])
HEAD = np.array([True, False, True, True, True, False])


def test_a_gain_in_balanced_accuracy_and_its_interval_by_hand():
    paired = pair(SOFTMAX, HEAD, LABELS, GROUPS, 2)
    assert paired.right_C4.tolist() == [[1, 1, 2, 0], [1, 0, 0, 1]]
    found = gain(paired)
    # class 0: (2 - 1) / 4 = 0.25, class 1: 0; their mean 0.125
    assert found.balanced_accuracy == pytest.approx(0.125)
    # Influence of a patient: 1/2 * (d - 0.25 * images) / 4, of p (d = -1, 2 images), q and r (1, 1 image):
    # -1.5/8, 0.75/8, 0.75/8; squares sum to 3.375/64; times 5/4 for five patients
    half = 1.959964 * math.sqrt(3.375 / 64 * 5 / 4)
    assert found.interval == pytest.approx((0.125 - half, 0.125 + half), abs=1e-6)
    # 1 and 2 images that one of the two got right: two-sided p of 1 or less of 3 throws, 2 * (1 + 3) / 8
    assert found.mcnemar_p == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("few", "many", "p"), [(0, 0, 1.0), (0, 5, 2 / 32), (1, 9, 2 * 11 / 1024), (3, 3, 1.0)]
)
def test_mcnemars_exact_p_by_hand(few, many, p):
    assert mcnemar(few, many) == pytest.approx(p)
    assert mcnemar(many, few) == pytest.approx(p)


@pytest.mark.parametrize("few", [0, 1, 7, 40])
@pytest.mark.parametrize("many", [1, 12, 55, 900])
def test_mcnemars_exact_p_is_scipys_binomial_test(few, many):
    assert mcnemar(few, many) == pytest.approx(binomtest(few, few + many, 0.5).pvalue, rel=1e-9)


def test_counts_of_two_sites_are_those_of_all_their_images():
    parts = [slice(0, 4), slice(4, 6)]
    left, right = (pair(SOFTMAX[part], HEAD[part], LABELS[part], GROUPS[part], 2) for part in parts)
    assert left + right == pair(SOFTMAX, HEAD, LABELS, GROUPS, 2)


def test_the_interval_agrees_with_drawing_groups_again():
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 3, 600)
    groups = [f"g{number}" for number in draws.integers(0, 200, 600)]
    softmax, head = draws.random(600) < 0.5, draws.random(600) < 0.6
    low, high = gain(pair(softmax, head, labels, groups, 3)).interval
    drawn = bootstrap(group_sums(softmax, head, labels, groups, 3))
    assert (low, high) == pytest.approx(drawn, abs=0.015)


def test_no_images_have_no_gain():
    nothing = pair(np.zeros(0, bool), np.zeros(0, bool), np.zeros(0, np.int64), (), 2)
    assert math.isnan(gain(nothing).balanced_accuracy)
