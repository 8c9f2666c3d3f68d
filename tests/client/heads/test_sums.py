"""Sums over training features, by hand."""

import numpy as np
import pytest

from client.heads.sums import gradient, largest_share, statistics
from common.errors import PolicyRefusal
from common.heads import square
from common.wire import Objective, ViewRequest

# Three images with two features; two of class 0, one of class 1.
ROWS = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, -1.0]])
LABELS = np.array([0, 0, 1])
WEIGHTS = (1.0, 2.0)
PATIENTS = ("a", "a", "b")


def test_sums_squares_and_weighted_products_by_hand():
    request = ViewRequest(name="v", class_weights=WEIGHTS, squares=True, moments="float64")
    found = statistics(ROWS, LABELS, request)
    assert found["sums"].tolist() == [[4, 2], [0, -1]]
    assert found["squares"].tolist() == [[10, 4], [0, 1]]
    # x xᵀ: [[1, 2], [2, 4]] + [[9, 0], [0, 0]] + 2 * [[0, 0], [0, 1]]
    assert square(found["moments"], 2).tolist() == [[10, 2], [2, 6]]


def test_a_squared_hinge_and_its_slope_by_hand():
    """Scores are the first feature for class 0, and 0 for class 1."""
    points = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    objective = Objective(name="p", loss="squared_hinge", class_weights=WEIGHTS)
    losses, slopes = gradient(ROWS, LABELS, points, objective, PATIENTS, None)
    # Class 0: scores 1, 3, 0 with signs +, +, -: short of the margin by 0, 0, 1; the third weighs 2.
    # Class 1: scores 0: every image is short by 1; 1 + 1 + 2.
    assert losses.tolist() == [2, 4]
    # Class 0: -2 * 2 * -1 * 1 = 4 times (0, -1; 1). Class 1: 2 (1, 2; 1) + 2 (3, 0; 1) - 4 (0, -1; 1)
    assert slopes.tolist() == [[0, 8], [-4, 8], [4, 0]]


def test_a_cross_entropy_and_its_slope_by_hand():
    objective = Objective(name="p", loss="softmax", class_weights=WEIGHTS)
    losses, slopes = gradient(ROWS, LABELS, np.zeros((3, 2)), objective, PATIENTS, None)
    # Probabilities 1/2 everywhere: (1 + 1 + 2) log 2
    assert losses == pytest.approx([4 * np.log(2)])
    # w (p - is): -1/2 of the first two, +1 of the third, for class 0
    np.testing.assert_allclose(slopes[:, 0], [-2, -2, 0])
    np.testing.assert_allclose(slopes[:, 1], [2, 2, 0])


def test_a_gradient_in_which_one_patient_weighs_more_than_the_policy_allows_is_refused():
    """Of class 0 only the third image is short of the margin: its features would be plain to see."""
    points = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    objective = Objective(name="p", loss="squared_hinge", class_weights=WEIGHTS)
    with pytest.raises(PolicyRefusal) as refused:
        gradient(ROWS, LABELS, points, objective, PATIENTS, 2)
    assert refused.value.reason == "min_cell: a gradient would be of too few patients"


def test_the_images_of_one_patient_weigh_together():
    """Of the softmax's slopes 1/2, 1/2 and 1 the patients have one half each."""
    objective = Objective(name="p", loss="softmax", class_weights=WEIGHTS)
    gradient(ROWS, LABELS, np.zeros((3, 2)), objective, PATIENTS, 2)
    with pytest.raises(PolicyRefusal, match="would weigh 50% in a gradient, at most 33%"):
        gradient(ROWS, LABELS, np.zeros((3, 2)), objective, PATIENTS, 3)
    with pytest.raises(PolicyRefusal, match="would weigh 100%"):
        gradient(ROWS, LABELS, np.zeros((3, 2)), objective, ("a", "a", "a"), 2)


def test_a_softmax_that_is_sure_of_all_images_but_one_is_refused():
    """Of the first image alone the class is wrong; the others' slopes are as good as nothing."""
    points = np.array([[-100.0, 100.0], [0.0, 0.0], [0.0, 0.0]])
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    objective = Objective(name="p", loss="softmax", class_weights=(1.0, 1.0))
    with pytest.raises(PolicyRefusal, match="would weigh 100%"):
        gradient(rows, np.array([0, 0, 0]), points, objective, ("a", "b", "c"), 2)


def test_the_largest_share_is_of_the_patient_whose_images_have_the_longest_features():
    rows = np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 3.0], [2.0, 0.0]])  # lengths 5, 1, 3, 2
    labels = np.array([0, 0, 0, 1])
    assert largest_share(rows, labels, ("a", "b", "b", "c")) == pytest.approx(5 / (5 + 2))  # b: (1 + 3) / 2
    assert largest_share(rows[3:], labels[3:], ("c",)) == 0  # a class of one patient is min_cell's affair
    assert largest_share(np.zeros((4, 2)), labels, ("a", "b", "b", "c")) == 0
