"""Heads that travel, from hand-made arrays: what they say of an image, and what is refused before it is applied."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from common.config.heads import HeadsConfig, LocalHead
from common.errors import WireError
from common.heads import scorers, travelling
from common.heads.travelling import HeadTooLarge, Travelling

VIEW = {"shift": np.zeros(2), "scale": np.ones(2)}
NEAR: dict[str, Any] = {
    **VIEW,
    "rows": np.array([[0.0, 0.0], [0.0, 3.0], [9.0, 9.0]]),
    "labels": np.array([0, 2, 2]),
    "num_neighbours": np.array([2]),
}
# exp(-0.5 * 4) = e^-2 between the two support vectors
KERNEL: dict[str, Any] = {
    **VIEW,
    "support": np.array([[0.0, 0.0], [2.0, 0.0]]),
    "dual": np.array([[-1.0, 1.0]]),
    "intercepts": np.array([0.5]),
    "num_support": np.array([1, 1]),
    "classes": np.array([0, 2]),
    "gamma": np.array([0.5]),
}
# The first tree asks whether feature 1 is at most 5, the second is a leaf alone.
TREES: dict[str, Any] = {
    **VIEW,
    "roots": np.array([0, 3]),
    "left": np.array([1, 1, 2, 3]),
    "right": np.array([2, 1, 2, 3]),
    "feature": np.array([1, 0, 0, 0]),
    "threshold": np.array([5.0, 0, 0, 0]),
    "values": np.array([[0.0, 0, 0], [1.0, 0, 0], [0.0, 0, 1], [0.5, 0.5, 0]]),
    "start": np.zeros(3),
}
ARRAYS = {"knn": NEAR, "svm_rbf": KERNEL, "random_forest": TREES, "gradient_boosting": TREES}


def head(kind: str, **changes: Any) -> LocalHead:
    read: LocalHead = TypeAdapter(LocalHead).validate_python({"kind": kind, **changes})
    return read


def probabilities(kind: str, rows: list[list[float]], **changes: Any) -> Any:
    return travelling.read(head(kind, **changes), ARRAYS[kind], 3).probabilities(np.array(rows))


def test_votes_of_neighbours_weigh_one_over_their_distance() -> None:
    # The distances are 1 and 2: the votes 1 and 1/2.
    assert probabilities("knn", [[0, 1]]) == pytest.approx(np.array([[2 / 3, 0, 1 / 3]]))
    assert probabilities("knn", [[0, 1]], weights="uniform") == pytest.approx(np.array([[0.5, 0, 0.5]]))


def test_a_row_at_no_distance_outvotes_the_others() -> None:
    assert probabilities("knn", [[0, 0]]).tolist() == [[1, 0, 0]]


def test_two_classes_of_support_vectors_have_one_score() -> None:
    """At the second support vector: 1 - e^-2 + 0.5, against its negative."""
    score = 1 - np.exp(-2) + 0.5
    expected = np.exp(score) / (np.exp(score) + np.exp(-score))
    assert probabilities("svm_rbf", [[2, 0]]) == pytest.approx(np.array([[1 - expected, 0, expected]]))


def test_the_trees_of_a_forest_vote_with_their_leaves() -> None:
    """At 5 the first tree goes left: the leaves (1, 0, 0) and (1/2, 1/2, 0)."""
    found = probabilities("random_forest", [[0, 5], [0, 6]])
    assert found.tolist() == [[0.75, 0.25, 0], [0.25, 0.25, 0.5]]


def test_the_leaves_of_boosting_add_up_to_scores() -> None:
    scores = np.exp([1.5, 0.5, 0])
    assert probabilities("gradient_boosting", [[0, 5]]) == pytest.approx(np.array([scores / scores.sum()]))


@pytest.mark.parametrize("kind", ARRAYS)
def test_no_images_have_no_probabilities(kind: str) -> None:
    found = travelling.read(head(kind), ARRAYS[kind], 3).probabilities(np.zeros((0, 2)))
    assert found.shape == (0, 3)


@pytest.mark.parametrize("kind", ARRAYS)
def test_many_images_are_applied_in_blocks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(0, 5, (7, 2)).tolist()
    whole = probabilities(kind, rows)
    monkeypatch.setattr(scorers, "_BLOCK", 3)
    np.testing.assert_array_equal(probabilities(kind, rows), whole)


WRONG: list[tuple[str, Mapping[str, Any], str]] = [
    ("knn", {"rows": np.zeros((3, 4))}, r"rows is \[3, 4\], expected \[3, 2\]"),
    ("knn", {"rows": np.full((3, 2), np.inf)}, "rows is not 2-dimensional, or not made of finite numbers"),
    ("knn", {"labels": np.array([0, 1, 3])}, "labels has entries outside of 0 to 2"),
    ("knn", {"labels": np.array([0.0, 1, 2])}, "labels is not 1-dimensional, or not made of whole numbers"),
    ("knn", {"labels": np.array([0, 1])}, r"labels is \[2\], expected \[3\]"),
    ("knn", {"num_neighbours": np.array([4])}, "num_neighbours has entries outside of 0 to 3"),
    ("knn", {"num_neighbours": np.array([0])}, "num_neighbours is 0, expected at least 1"),
    ("knn", {"extra": np.zeros(1)}, r"the head has 1 array\(s\) that a knn does not have"),
    ("svm_rbf", {"classes": np.array([2, 0])}, "classes are not two or more in ascending order"),
    ("svm_rbf", {"num_support": np.array([1, 0])}, "support vectors by class do not add up"),
    ("svm_rbf", {"gamma": np.array([-1.0])}, "gamma is not positive"),
    ("svm_rbf", {"dual": np.zeros((2, 2))}, r"dual is \[2, 2\], expected \[1, 2\]"),
    ("random_forest", {"left": np.array([0, 1, 2, 3])}, "a node leads back to itself or to one before it"),
    ("random_forest", {"right": np.array([2, 0, 2, 3])}, "a node leads back to itself or to one before it"),
    ("random_forest", {"feature": np.array([2, 0, 0, 0])}, "feature has entries outside of 0 to 1"),
    ("random_forest", {"roots": np.array([], np.int64)}, "roots are empty"),
    ("random_forest", {"roots": np.array([4])}, "roots has entries outside of 0 to 3"),
    ("random_forest", {"values": np.zeros((4, 3))}, "a forest has leaves without probabilities"),
    ("gradient_boosting", {"start": np.zeros(2)}, r"start is \[2\], expected \[3\]"),
    ("gradient_boosting", {"scale": np.zeros(2)}, "scale does not fit its shift or is not positive"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), WRONG)
def test_arrays_that_are_no_such_head_are_refused(
    kind: str, changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(WireError, match=message):
        travelling.read(head(kind), {**ARRAYS[kind], **changes}, 3)


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_missing_array_is_named(kind: str) -> None:
    for name in travelling.names_of(head(kind)):
        with pytest.raises(WireError, match=f"{name} is missing"):
            travelling.read(head(kind), {n: a for n, a in ARRAYS[kind].items() if n != name}, 3)


def test_a_variance_of_zero_is_refused() -> None:
    arrays = {**VIEW, "means": np.zeros((3, 2)), "variances": np.zeros((3, 2)), "priors": np.zeros(3)}
    with pytest.raises(WireError, match="variances are not all positive"):
        travelling.read(head("naive_bayes"), arrays, 3)


def test_a_tree_that_never_ends_is_refused() -> None:
    """A chain in which each node leads to the next: a thousand steps and one more."""
    places = np.arange(scorers.MOST_DEPTH + 2)
    chain = np.minimum(places + 1, places[-1])
    arrays = {
        **VIEW, "roots": np.array([0]), "left": chain, "right": chain, "feature": np.zeros_like(chain),
        "threshold": np.zeros(len(chain)), "values": np.ones((len(chain), 3)), "start": np.zeros(3),
    }  # fmt: skip
    with pytest.raises(WireError, match="deeper than 1000 steps"):
        travelling.read(head("random_forest"), arrays, 3)
    shorter = arrays | {"roots": np.array([1])}
    scorer = travelling.read(head("random_forest"), shorter, 3)
    assert scorer.probabilities(np.zeros((1, 2))) == pytest.approx(np.full((1, 3), 1 / 3))


def test_a_head_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two times two of view, six of rows, three labels and a number: 14 entries of 8 bytes
    monkeypatch.setattr(travelling, "LARGEST_HEAD", 14 * 8)
    travelling.read(head("knn"), NEAR, 3)
    monkeypatch.setattr(travelling, "LARGEST_HEAD", 14 * 8 - 1)
    with pytest.raises(HeadTooLarge, match="the head has 112 bytes, expected at most 111"):
        travelling.read(head("knn"), NEAR, 3)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(WireError, match="found features of width 3, expected 2"):
        probabilities("knn", [[0, 0, 0]])


def test_only_heads_that_the_study_has_travel_are_asked_for() -> None:
    config = HeadsConfig.model_validate({"local": [{"kind": "knn", "travels": True}, {"kind": "lda"}]})
    assert [one.title for one in travelling.asked(config)] == ["knn"]
    assert travelling.asked(None) == ()
    assert Travelling(name="knn", owner="north").title == "local.knn@north"


def test_what_left_is_known_from_the_names_of_the_arrays() -> None:
    names = ["fitted/knn/near/rows", "fitted/knn/near/labels", "fitted/lda/lda/bias", "statistics/raw/sums"]
    assert travelling.left_in(names) == {"near": "knn", "lda": "lda"}
