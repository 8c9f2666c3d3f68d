"""The search for two machines on two images, each step worked by hand."""

import numpy as np
import pytest

from common.config.heads import LinearSvm, Logistic
from server.heads.search import Searches
from server.heads.solvers import Statistics

SUMS = Statistics(
    counts_C=np.array([1, 1]),
    sums_CD=np.array([[-1.0], [1.0]]),
    moments_DD=np.array([[2.0]]),
    weights_C=np.ones(2),
)
"""Image -1 of class 0 and image 1 of class 1."""


def svm(**settings: float) -> Searches:
    return Searches.begin(LinearSvm(c=1.0, **settings), SUMS)


def stepped(searches: Searches) -> Searches:
    """After the answer at zero: both images have loss 1 in each machine, and the slopes are ±2 an image."""
    return searches.evaluated(np.array([2.0, 2.0]), np.array([[4.0, -4.0], [0.0, 0.0]]))


def test_machines_begin_at_zero_with_one_column_a_class():
    assert svm().trial_PC.tolist() == [[0, 0], [0, 0]]
    assert svm().per_class
    assert not svm().finished


def test_the_first_step_is_newtons():
    # Curvature 1 + 2 * 2 = 5 along the weight: 4 / 5
    assert stepped(svm()).trial_PC == pytest.approx(np.array([[-0.8, 0.8], [0, 0]]))


def test_machines_are_done_where_the_penalised_slope_is_zero():
    # At 0.8: losses 2 * 0.2² = 0.08, slopes -2 * 2 * 0.2 = -0.8, and the penalty's slope is 0.8.
    searches = stepped(svm()).evaluated(np.array([0.08, 0.08]), np.array([[0.8, -0.8], [0.0, 0.0]]))
    assert searches.finished
    assert searches.points_PC == pytest.approx(np.array([[-0.8, 0.8], [0, 0]]))
    # Each machine: 0.8² / 2 + 0.08 = 0.4
    assert "after 2 messages, objective 0.8" in searches.summary


def test_a_search_out_of_messages_is_finished_and_its_summary_says_what_to_raise():
    searches = svm(most_messages=2)
    for _ in range(2):
        searches = stepped(searches)
    assert searches.finished
    assert "raise most_messages" in searches.summary


def test_a_restart_keeps_the_point_forgets_the_direction_and_counts_the_message():
    searches = stepped(svm()).restarted()
    assert searches.trial_PC.tolist() == [[0, 0], [0, 0]]
    assert searches.num_messages == 2


def test_logistic_regression_is_one_search_and_its_bias_is_free():
    searches = Searches.begin(Logistic(c=1.0), SUMS)
    assert len(searches.each) == 1
    # Both images at probability 1/2: loss 2 log 2; slopes of the weights ±1, of the biases 0
    searches = searches.evaluated(np.array([2 * np.log(2)]), np.array([[1.0, -1.0], [0.0, 0.0]]))
    # Böhning's bound: 1 + 1/2 * 2 = 2 along a weight, so the step is 1/2
    assert searches.trial_PC == pytest.approx(np.array([[-0.5, 0.5], [0, 0]]))
    shifted = Searches.begin(Logistic(c=1.0), SUMS)
    shifted = shifted.evaluated(np.array([1.0]), np.array([[0.0, 0.0], [-2.0, 0.0]]))
    # Along a bias the curvature is 1/2 * 2 = 1 and no penalty: a slope of -2 is a step of 2.
    assert shifted.trial_PC == pytest.approx(np.array([[0, 0], [2, 0]]), abs=1e-5)
