"""Scores as words: what masked sums give back is the sum of the scores."""

import math
import random
from fractions import Fraction
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as some_arrays

from common.errors import ConsiliumError
from common.masking import grid
from common.masking.tables import (
    LARGEST,
    UNIT,
    num_words,
    opened_sum,
    pooled_score,
    score_words,
    sum_words,
)
from common.metrics import Score, count, empty


def score(seed: int, num_images: int, num_classes: int, left_out: tuple[int, ...] = ()) -> Score:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(num_classes), num_images)
    labels = rng.integers(0, num_classes, num_images)
    made = count(probabilities, labels, float(rng.uniform(0, 3) * num_images))
    return made.model_copy(update={"left_out_C": left_out})


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    num_classes=st.integers(2, 4),
    left_out=st.integers(0, 9),
)
def test_the_sum_of_words_is_the_sum_of_scores(sizes: list[int], num_classes: int, left_out: int) -> None:
    scores = [score(at, size, num_classes, (left_out,) * num_classes) for at, size in enumerate(sizes)]
    words = sum((score_words(one) for one in scores), np.zeros(num_words(num_classes), np.uint64))
    found, expected = pooled_score(words, num_classes, 500), reduce(add, scores)
    for name in ("confusion_CC", "histogram_C2B", "calibration_2K"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert found.images_C == expected.images_C
    most = len(sizes) * UNIT  # half a step for each site, and the sum's own last bit
    assert abs(found.loss_sum - expected.loss_sum) <= most
    assert all(abs(a - b) <= most for a, b in zip(found.confidence_K, expected.confidence_K, strict=True))


def test_a_loss_that_is_not_finite_spoils_the_loss_alone() -> None:
    diverged = score(1, 5, 2).model_copy(update={"loss_sum": math.inf})
    words = score_words(diverged) + score_words(score(2, 7, 2))
    found = pooled_score(words, 2, 500)
    assert math.isnan(found.loss_sum)
    assert found.num_images == 12
    assert all(map(math.isfinite, found.confidence_K))


def test_more_than_a_sum_has_room_for_is_not_sent() -> None:
    for change in ({"loss_sum": 2.0 * LARGEST}, {"left_out_C": (0, LARGEST + 1)}):
        with pytest.raises(ConsiliumError, match="no room for"):
            score_words(empty(2).model_copy(update=change))


def test_sums_that_are_of_no_score_are_refused() -> None:
    words = score_words(score(1, 5, 2))
    words[0] += np.uint64(1)  # an image in the confusion matrix that is in no histogram
    with pytest.raises(ValueError, match="contradict each other"):
        pooled_score(words, 2, 500)
    with pytest.raises(ValueError, match="whole numbers from 0"):
        pooled_score(np.full(num_words(2), 2**63 + 5, np.uint64), 2, 500)
    with pytest.raises(ValueError, match="expected"):
        pooled_score(words[1:], 2, 500)


# --- sums for heads ----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    arrays=st.lists(
        some_arrays(np.float64, (3,), elements=st.floats(-(2.0**40), 2.0**40)), min_size=1, max_size=6
    ),
    order=st.randoms(use_true_random=False),
)
def test_sums_of_words_are_the_plain_sums_bit_for_bit_in_any_order(
    arrays: list[np.ndarray], order: random.Random
) -> None:
    words = np.zeros((2, 3), np.uint64)
    for array in arrays:
        words = words + sum_words("sums", array)
    found = opened_sum(words, len(arrays))
    shuffled = order.sample(arrays, len(arrays))
    assert found.tobytes() == grid.total(arrays).tobytes() == grid.total(shuffled).tobytes()
    exact = [float(sum(map(Fraction, column))) for column in zip(*arrays, strict=True)]
    assert found == pytest.approx(exact, rel=1e-15, abs=len(arrays) * 2.0**-62)
    assert grid.total([found]).tobytes() == found.tobytes() or not grid.fits(found)  # rounded once


def test_a_sum_of_known_numbers_is_exact() -> None:
    parts = [np.array([0.1, 2.0**40]), np.array([0.2, -(2.0**40)]), np.array([0.3, 3.0])]
    # 0.1 + 0.2 + 0.3 is 0.6 to the last bit of 2**-62; added as floats it is 0.6000000000000001
    assert grid.total(parts).tolist() == [0.6, 3.0]
    assert 0.1 + 0.2 + 0.3 != 0.6


@pytest.mark.parametrize("entry", [math.nan, math.inf, -math.inf, 2.0**41, -(2.0**41)])
def test_sums_that_words_have_no_room_for_are_refused_and_named(entry: float) -> None:
    with pytest.raises(
        ConsiliumError, match=r"statistics/raw/sums has an entry that is not finite or above 1.1e\+12"
    ):
        sum_words("statistics/raw/sums", np.array([1.0, entry]))


def test_what_no_sites_can_have_sent_is_found_when_the_masks_come_off() -> None:
    most = sum_words("sums", np.array([2.0**40]))
    assert opened_sum(most + most, 2).tolist() == [2.0**41]
    with pytest.raises(ValueError, match="of no numbers that sites may send"):
        opened_sum(most + most + most, 2)
