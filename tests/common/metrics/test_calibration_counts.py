"""Calibration counts of a few images, against what is computed image by image."""

import math

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import log_softmax

from common.metrics.calibration import (
    MOST_NEGATIVE_LOG,
    TEMPERATURES,
    CalibrationCounts,
    bins_of,
    calibration_counts,
    tempered,
    upper_edges,
)

ONE = TEMPERATURES.index(1.0)


def drawn(num_images: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, probabilities and labels that three classes could have."""
    rng = np.random.default_rng(5)
    logits_NC = rng.normal(size=(num_images, 3)) * 2
    return logits_NC, np.exp(log_softmax(logits_NC, axis=1)), rng.integers(0, 3, num_images)


def test_a_temperature_divides_the_logits():
    logits_NC, probabilities_NC, _ = drawn()
    expected_NC = np.exp(log_softmax(logits_NC / 2.5, axis=1))
    np.testing.assert_allclose(tempered(probabilities_NC, 2.5), expected_NC)


def test_a_class_without_any_probability_stays_finite():
    assert tempered(np.array([[1.0, 0.0]]), 0.5).tolist() == [[1.0, 0.0]]
    shares = tempered(np.array([[1.0, 0.0]]), 8.0)
    assert np.isfinite(shares).all()
    assert shares.sum() == pytest.approx(1)


def test_bins_are_equally_wide_in_the_root_of_the_negative_logarithm():
    # 16 x (1/4)^2 = 1, 4, 9, 16
    assert upper_edges(4) == (1, 4, 9, 16)
    probabilities = np.exp([-0.0, -0.9, -1.1, -8.9, -9.1, -15.9])
    assert bins_of(probabilities, 4).tolist() == [0, 0, 1, 2, 3, 3]
    assert bins_of(np.array([0.0, 1.0]), 4).tolist() == [3, 0]


def test_many_bins_give_the_losses_of_the_images_themselves():
    logits_NC, probabilities_NC, labels_N = drawn()
    found = calibration_counts(probabilities_NC, labels_N, num_bins=500)
    for temperature, loss in zip(TEMPERATURES, found.losses_T, strict=True):
        exact = -log_softmax(logits_NC / temperature, axis=1)[np.arange(200), labels_N].sum()
        assert loss == pytest.approx(exact, rel=0.02)


def test_images_of_one_bin_count_alike():
    near = calibration_counts(np.array([[0.705, 0.295]]), np.array([0]), 20)
    far = calibration_counts(np.array([[0.76, 0.24]]), np.array([0]), 20)
    assert near == calibration_counts(np.array([[0.75, 0.25]]), np.array([0]), 20)
    assert near == far  # 0.70 to 0.85 is one bin, and so is 0.24 to 0.37
    assert near != calibration_counts(np.array([[0.9, 0.1]]), np.array([0]), 20)


def test_the_tables_count_every_image_at_every_temperature():
    _, probabilities_NC, labels_N = drawn()
    found = calibration_counts(probabilities_NC, labels_N, 20)
    num_right = int((probabilities_NC.argmax(axis=1) == labels_N).sum())
    assert found.reliability_T2K.sum(axis=2).tolist() == [[200, num_right]] * len(TEMPERATURES)
    assert found.images_C == tuple(np.bincount(labels_N).tolist())
    assert found.num_images == 200


def test_no_image_is_no_count():
    found = calibration_counts(np.zeros((0, 3)), np.zeros(0, np.int64), 20)
    assert (found.num_images, set(found.losses_T), found.images_C) == (0, {0.0}, (0, 0, 0))
    assert math.copysign(1, found.losses_T[0]) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"losses_T": (1.0,)}, "losses_T has 1 temperatures"),
        ({"losses_T": (math.nan,) * len(TEMPERATURES)}, "finite numbers"),
        ({"losses_T": (200 * (MOST_NEGATIVE_LOG * 4 + 2),) * len(TEMPERATURES)}, "larger than the images can have"),
        ({"confidence_TK": ((9.0,) * 14,) * len(TEMPERATURES)}, "not a row of bins"),
        ({"confidence_TK": ((201.0,) * 15,) * len(TEMPERATURES)}, "larger than its number of images"),
        ({"histogram_CB": [[1, 2], [3, 4], [5, 6]]}, "not of the same images"),
        ({"histogram_CB": [[200], [0], [0]]}, "expected 2 to 500 bins"),
        ({"reliability_T2K": [[[1] * 15, [2] * 15]] * len(TEMPERATURES)}, "not of the same images"),
    ],
)  # fmt: skip
def test_counts_that_contradict_each_other_are_none(change, said):
    _, probabilities_NC, labels_N = drawn()
    whole = calibration_counts(probabilities_NC, labels_N, 20).model_dump()
    assert CalibrationCounts.model_validate(whole).num_images == 200
    with pytest.raises(ValidationError, match=said):
        CalibrationCounts.model_validate(whole | change)
