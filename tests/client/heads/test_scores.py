"""Scores of heads beside the softmax, by hand."""

import numpy as np
import pytest

from client.heads import scores

LABELS = np.array([0, 0, 1, 1])
# The network takes all four for class 0.
LOGITS = np.array([[1.0, 0.0]] * 4)
# The head is right about three: the second image is wrong.
HEAD = np.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.3, 0.7]])
GROUPS = ("a", "a", "b", "c")


def test_the_softmax_is_scored_as_it_is() -> None:
    result = scores.of_softmax(LOGITS, LABELS, GROUPS, None)
    assert result.title == "softmax"
    assert result.score is not None
    assert result.score.confusion_CC.tolist() == [[2, 0], [2, 0]]
    assert result.paired is None


def test_a_head_is_counted_on_the_images_where_it_and_the_softmax_differ() -> None:
    result = scores.beside("local.lda", HEAD, LOGITS, LABELS, GROUPS, None)
    assert result.score is not None
    assert result.paired is not None
    assert result.score.confusion_CC.tolist() == [[1, 1], [0, 2]]
    # Summed cross-entropy: -ln 0.8 - ln 0.4 - ln 0.9 - ln 0.7
    assert result.score.loss_sum == pytest.approx(-np.log([0.8, 0.4, 0.9, 0.7]).sum())
    # By class: both right, only the softmax, only the head, neither.
    assert result.paired.right_C4.tolist() == [[1, 1, 0, 0], [0, 0, 2, 0]]
    assert result.paired.num_groups == 3


def test_a_head_whose_small_cells_are_kept_back_is_not_compared() -> None:
    """Of class 0 each prediction is of one patient, of class 1 both images are of two: all are below 3."""
    result = scores.beside("local.lda", HEAD, LOGITS, LABELS, GROUPS, 20, 3)
    assert (result.paired, result.interval) == (None, None)
    softmax = scores.of_softmax(LOGITS, LABELS, GROUPS, 20, 3)
    for found in (result, softmax):
        assert found.score is not None
        assert found.score.num_images == 0
        assert found.score.left_out_C == (2, 2)


def test_probabilities_that_are_not_finite_are_a_problem_and_no_score() -> None:
    result = scores.beside("local.lda", np.full((4, 2), np.nan), LOGITS, LABELS, GROUPS, None)
    assert (result.problem, result.score) == ("not_finite", None)


def test_a_probability_of_zero_has_a_loss_that_is_bounded() -> None:
    sure = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    result = scores.beside("local.svm", sure, LOGITS, LABELS, GROUPS, None)
    assert result.score is not None
    assert result.score.loss_sum == pytest.approx(12 * np.log(10))  # one image at the bound of 1e-12


def test_the_bootstrap_of_groups_that_all_gain_the_same_has_no_width() -> None:
    # Per group: gain of class 0, gain of class 1, images of class 0, images of class 1.
    assert scores.bootstrap(np.array([[1, 0, 2, 2]] * 5)) == (0.25, 0.25)  # (1/2 + 0) / 2


def test_the_bootstrap_repeats_itself() -> None:
    values = np.array([[1, 0, 1, 0], [0, -1, 0, 1], [0, 1, 0, 1], [-1, 0, 1, 0]])
    low, high = scores.bootstrap(values)
    assert scores.bootstrap(values) == (low, high)
    assert low < 0 < high
