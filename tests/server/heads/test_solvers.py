"""Heads from sums, in one or two dimensions, each number worked by hand."""

import math

import numpy as np
import pytest

from common.heads import ABSENT, View, identity
from server.heads import solvers
from server.heads.solvers import Statistics


def statistics(counts, sums, squares=None, moments=None, weights=None) -> Statistics:
    def floats(values):
        return None if values is None else np.array(values, np.float64)

    return Statistics(np.array(counts), floats(sums), floats(squares), floats(moments), floats(weights))


# --- weights and views ---------------------------------------------------------------------------


def test_balanced_weights_share_the_images_equally_among_the_classes_present():
    # 4 images of 2 classes: 4 / (2 * 3) and 4 / (2 * 1)
    assert solvers.balanced(np.array([3, 1, 0])).tolist() == pytest.approx([2 / 3, 2.0, 0.0])


def test_the_scaled_view_has_the_mean_and_the_deviation_of_all_images():
    # Features of two images: (1, 7) and (3, 7). Mean 2, variance (1 + 9) / 2 - 4 = 1; the second is constant.
    view = solvers.scaled(statistics([1, 1], [[1, 7], [3, 7]], [[1, 49], [9, 49]]))
    assert view.shift_F.tolist() == [2, 7]
    assert view.scale_F.tolist() == [1, 1]


def test_sums_after_a_view_are_the_sums_of_its_images():
    # Images 1 and 3 become -1 and 1 about their mean, or -0.5 and 0.5 on twice the scale.
    after = solvers.moved(statistics([1, 1], [[1], [3]], [[1], [9]]), View(np.array([2.0]), np.array([2.0])))
    assert after.sums_CD.tolist() == [[-0.5], [0.5]]
    assert after.squares_CD is not None
    assert after.squares_CD.tolist() == [[0.25], [0.25]]


def test_the_leading_component_points_along_the_widest_axis():
    # Images (2, 1), (-2, 1), (0, 2), (0, 0): mean (0, 1), covariance diag(2, 1/2)
    sums = statistics([4], [[0, 4]], moments=[[8, 0], [0, 6]])
    view = solvers.principal(sums, identity(2), 1)
    assert view.shift_F.tolist() == [0, 1]
    assert view.components_FK == pytest.approx(np.array([[1.0], [0.0]]))


def test_the_variance_of_a_view_is_that_of_its_entries():
    raw = statistics([1, 1], [[1], [3]], [[1], [9]])
    assert solvers.variance(raw, identity(1), None) == pytest.approx(1.0)
    # On the first component of (2, 1), (-2, 1), (0, 2), (0, 0): entries 2, -2, 0, 0, variance 8 / 4
    moments = statistics([4], [[0, 4]], moments=[[8, 0], [0, 6]])
    view = solvers.principal(moments, identity(2), 1)
    assert solvers.variance(statistics([4], [[0, 4]], [[8, 6]]), view, moments) == pytest.approx(2.0)


# --- heads ---------------------------------------------------------------------------------------


def test_nearest_mean_in_one_dimension():
    # Class 0: images 0 and 2, mean 1. Class 1: image 3. Scores m x - m²/2 are equal in the middle, at 2.
    head = solvers.nearest_mean(statistics([2, 1], [[2], [3]]))
    assert head["weights"].tolist() == [[1, 3]]
    assert head["bias"].tolist() == [-0.5, -4.5]
    scores = head["weights"][0] * 2 + head["bias"]
    assert scores[0] == scores[1]


def test_a_class_without_images_gets_no_weight_and_the_absent_score():
    head = solvers.nearest_mean(statistics([2, 1, 0], [[2], [3], [0]]))
    assert head["weights"][:, 2].tolist() == [0]
    assert head["bias"][2] == ABSENT


def test_ridge_in_one_dimension():
    # Images -1 (class 0) and 1 (class 1), aims -1 and 1: w = 2 / (2 + alpha) in size, 0.5 for alpha 2
    head = solvers.ridge(statistics([1, 1], [[-1], [1]], moments=[[2]]), alpha=2.0)
    assert head["weights"].tolist() == [[-0.5, 0.5]]
    assert head["bias"].tolist() == [0, 0]


def test_ridge_in_two_dimensions():
    # Images (1, 1) and (-1, -1): moments [[2, 2], [2, 2]]. With w = a (1, 1): 4 a + alpha a = 2, a = 0.4
    head = solvers.ridge(statistics([1, 1], [[1, 1], [-1, -1]], moments=[[2, 2], [2, 2]]), alpha=1.0)
    assert head["weights"] == pytest.approx(np.array([[0.4, -0.4], [0.4, -0.4]]))
    assert head["bias"] == pytest.approx(np.zeros(2))


def test_the_bias_of_ridge_is_not_penalised():
    # The same two images about 10: the boundary moves with them. Moments 9² + 11² = 202.
    head = solvers.ridge(statistics([1, 1], [[9], [11]], moments=[[202]]), alpha=2.0)
    assert head["weights"] == pytest.approx(np.array([[-0.5, 0.5]]))
    assert head["bias"] == pytest.approx([5, -5])


def test_weights_of_classes_move_the_bias_of_ridge():
    # Two images at -1 of class 0 and one at 1 of class 1; balanced weights 3/4 and 3/2 make both sides equal.
    counts, weights = [2, 1], [0.75, 1.5]
    head = solvers.ridge(
        statistics(counts, [[-2], [1]], moments=[[0.75 * 2 + 1.5]], weights=weights), alpha=1.0
    )
    # total weight 3, centred moment 3, targets -3 and 3: w = 3 / (3 + 1)
    assert head["weights"] == pytest.approx(np.array([[-0.75, 0.75]]))
    assert head["bias"] == pytest.approx([0, 0])


def test_a_discriminant_in_one_dimension():
    # Class 0: -2 and 0. Class 1: 0 and 2. Within-class variance 1, means -1 and 1.
    sums = statistics([2, 2], [[-2], [2]], moments=[[8]])
    head = solvers.lda(sums, "counted", shrinkage=0.0)
    assert head["weights"] == pytest.approx(np.array([[-1.0, 1.0]]))
    assert head["bias"] == pytest.approx([-0.5 + math.log(0.5)] * 2)


def test_shrinkage_moves_the_covariance_of_a_discriminant_to_its_mean_variance():
    # Class 0 at (-1, 0) twice, class 1 at (1, 0) twice, spread (±2, 0): covariance diag(4, 0), mean variance 2.
    # Shrunk by half: diag(3, 1), so the first weight is 1/3.
    sums = statistics([2, 2], [[-2, 0], [2, 0]], moments=[[20, 0], [0, 0]])
    head = solvers.lda(sums, "counted", shrinkage=0.5)
    assert head["weights"] == pytest.approx(np.array([[-1 / 3, 1 / 3], [0, 0]]))


@pytest.mark.parametrize(("priors", "shares"), [("counted", [2 / 3, 1 / 3]), ("equal", [1 / 2, 1 / 2])])
def test_naive_bayes_in_one_dimension(priors, shares):
    # Class 0: 1 and 3, variance 1. Class 1: 5, variance 0. All: 35 / 3 - 9 = 8 / 3, times 3/4 is added: 2.
    head = solvers.naive_bayes(statistics([2, 1], [[4], [5]], [[10], [25]]), priors, smoothing=0.75)
    assert head["means"].tolist() == [[2], [5]]
    assert head["variances"] == pytest.approx(np.array([[3.0], [2.0]]))
    assert np.exp(head["priors"]) == pytest.approx(shares)


@pytest.mark.parametrize(("penalised", "expected"), [(True, [1, 2]), (False, [1, 2.5])])
def test_the_curvature_bound_of_two_images(penalised, expected):
    # Images -1 and 1: moments 2, sum 0, 2 images. Times c = 1 and curvature 2, plus the penalty: diag(5, 5 or 4).
    solve = solvers.bound(statistics([1, 1], [[-1], [1]], moments=[[2]]), 1.0, 2.0, penalised_bias=penalised)
    assert solve(np.array([5.0, 10.0])) == pytest.approx(expected, rel=1e-5)
