"""Sums over test patients: what they are of, and when there are none."""

import numpy as np
import pytest

from client.answers import intervals
from client.config import PolicyConfig
from common.metrics import count
from common.metrics.replicates import NUM_REPLICATES, least_patients

SECRET = b"s" * 32


def images(num_patients: int) -> dict[str, object]:
    """Two images of each patient, of one class."""
    draws = np.random.default_rng(num_patients)
    labels = np.repeat(draws.integers(0, 2, num_patients), 2)
    first = draws.random(2 * num_patients)
    probabilities = np.column_stack([first, 1 - first])
    return {
        "score": count(probabilities, labels, 0.0, 20),
        "probabilities_NC": probabilities,
        "labels_N": labels,
        "patients_N": [f"p{place // 2}" for place in range(len(labels))],
        "images_N": [f"i{place}" for place in range(len(labels))],
    }


def of_test(secret: bytes = SECRET, **there):
    return intervals.of_test(**there, secret=secret, num_bins=20)


def test_a_patients_numbers_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    labels, patients = np.array([0, 0, 1]), np.array([0, 0, 1])
    score = count(probabilities, labels, 0.0, 20)
    values = intervals.patient_values(score, probabilities, labels, patients, 20)
    # right, images, predictions by class
    assert values[:, :6].tolist() == [[1, 0, 2, 0, 1, 1], [0, 1, 0, 1, 0, 1]]
    # Class 0 at 0.9 and 0.2, class 1 at 0.4: one of two pairs in order, AUROC 1/2. The image at 0.9 is above all
    # others: (1 - 1/2) / 2 images of its class; that at 0.2 below: (0 - 1/2) / 2. They are of one patient: 0 in sum.
    assert values[:, 6] == pytest.approx([0, 0])
    apart = intervals.patient_values(score, probabilities, labels, np.array([0, 1, 2]), 20)
    assert apart[:, 6] == pytest.approx([3 * 0.25, 3 * -0.25, 0])  # times three images


def test_sums_of_few_patients_stay_at_the_site():
    # two classes: 7 numbers, so 20 patients are the fewest; seven classes: twice 22
    assert (least_patients(2), least_patients(7)) == (20, 44)
    assert of_test(**images(19)) is None
    found = of_test(**images(20))
    assert found is not None
    assert (found.num_patients, found.sums_RV.shape) == (20, (NUM_REPLICATES, 7))


def test_the_same_patients_have_the_same_random_numbers_in_every_order():
    there = images(30)
    order = np.random.default_rng(0).permutation(60)
    turned = {
        "score": there["score"],
        "probabilities_NC": there["probabilities_NC"][order],
        "labels_N": there["labels_N"][order],
        "patients_N": [there["patients_N"][place] for place in order],
        "images_N": [there["images_N"][place] for place in order],
    }
    first, second = of_test(**there), of_test(**turned)
    assert first.sums_RV == pytest.approx(second.sums_RV, abs=0.002)
    assert first.test_set == second.test_set


def test_another_site_draws_other_numbers_and_another_image_is_another_test_set():
    there = images(30)
    first, second = of_test(**there), of_test(b"t" * 32, **there)
    assert abs(np.corrcoef(first.sums_RV[:, 0], second.sums_RV[:, 0])[0, 1]) < 0.2
    assert first.test_set != second.test_set
    there["images_N"][7] = "another"
    assert of_test(**there).test_set != first.test_set


def test_sums_tell_the_covariance_of_the_patients_and_are_not_their_numbers():
    there = images(400)
    sums = of_test(**there).sums_RV
    patients = np.arange(800) // 2
    values = intervals.patient_values(
        there["score"], there["probabilities_NC"], there["labels_N"], patients, 20
    )
    expected = 400 * np.cov(values.T)
    found = sums.T @ sums / NUM_REPLICATES
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    assert np.max(np.abs(found - expected) / scale) < 0.25  # a covariance of 400 draws: 5 to 7 % of noise
    assert np.mean(sums == np.round(sums)) < 0.05


@pytest.mark.parametrize(
    ("rules", "may"),
    [({}, True), ({"intervals": False}, False), ({"scores": False}, False), ({"min_score_cell": 5}, False)],
)
def test_a_policy_keeps_them_back(rules, may):
    assert intervals.may_leave(PolicyConfig(**rules)) is may
