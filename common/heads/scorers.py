"""Heads that are no sums: support vectors, neighbours and trees as arrays, and the probabilities that follow.

A head of scikit-learn's that leaves its site is arrays of numbers, and these functions apply them. Nothing of
scikit-learn, no pickle and no code comes along, so a site that receives one receives data only. The arithmetic is
that of scikit-learn's own `predict_proba` or `decision_function`.

N images, D features of a view, C classes of the study, K classes that the head has seen, S support vectors, M rows,
T trees, E nodes of all trees. Computed in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.errors import WireError
from common.heads.fitted import softmax
from common.heads.view import Floats, View, need
from common.weights import Array, Arrays

Whole = npt.NDArray[np.int64]
Rows = npt.NDArray[np.floating]

_BLOCK = 256
"""Images that are applied at once, so that memory depends on the head and not on the images."""
MOST_DEPTH = 1000
"""Most steps from a tree's root to a leaf."""


@dataclass(frozen=True)
class Kernel:
    """A Gaussian-kernel machine for each pair of classes that it has seen (scikit-learn's SVC)."""

    view: View
    support_SD: Floats
    dual: Floats
    """(K - 1, S): weights of the support vectors, as libsvm keeps them."""
    intercepts: Floats
    """One for each pair of classes, (0, 1) first, then (0, 2)."""
    num_support_K: Whole
    classes_K: Whole
    gamma: float
    num_classes: int

    def probabilities(self, features_NF: Rows) -> Floats:
        """(N, C), rows sum to 1: the softmax of the scores of the classes seen."""
        return _blocks(features_NF, self.view, self._block, self.num_classes)

    def _block(self, mapped_ND: Floats) -> Floats:
        kernel_NS = np.exp(-self.gamma * _squared_distances(mapped_ND, self.support_SD))
        if len(self.classes_K) == 2:
            score_N = kernel_NS @ self.dual[0] + self.intercepts[0]
            scores_NK = np.stack([-score_N, score_N], axis=1)
        else:
            scores_NK = self._votes(kernel_NS)
        result_NC = np.zeros((len(mapped_ND), self.num_classes))
        result_NC[:, self.classes_K] = softmax(scores_NK)
        return result_NC

    def _votes(self, kernel_NS: Floats) -> Floats:
        """Votes of the pairs, and less than a third of one for how sure they are (`_ovr_decision_function`)."""
        num_seen = len(self.classes_K)
        ends = np.cumsum(self.num_support_K)
        of = [slice(end - count, end) for end, count in zip(ends, self.num_support_K, strict=True)]
        votes_NK = np.zeros((len(kernel_NS), num_seen))
        sure_NK = np.zeros_like(votes_NK)
        pairs = [(i, j) for i in range(num_seen) for j in range(i + 1, num_seen)]
        for (i, j), intercept in zip(pairs, self.intercepts, strict=True):
            for_i_N = (
                kernel_NS[:, of[i]] @ self.dual[j - 1, of[i]]
                + kernel_NS[:, of[j]] @ self.dual[i, of[j]]
                + intercept
            )
            votes_NK[:, i] += for_i_N >= 0
            votes_NK[:, j] += for_i_N < 0
            sure_NK[:, i] += for_i_N
            sure_NK[:, j] -= for_i_N
        result: Floats = votes_NK + sure_NK / (3 * (np.abs(sure_NK) + 1))
        return result


@dataclass(frozen=True)
class Neighbours:
    """The vote of the nearest rows."""

    view: View
    rows_MD: Floats
    labels_M: Whole
    num_neighbours: int
    by_distance: bool
    """A vote weighs 1 over its distance; else all weigh the same."""
    num_classes: int

    def probabilities(self, features_NF: Rows) -> Floats:
        """(N, C), rows sum to 1."""
        return _blocks(features_NF, self.view, self._block, self.num_classes)

    def _block(self, mapped_ND: Floats) -> Floats:
        k = self.num_neighbours
        near_Nk = np.argpartition(_squared_distances(mapped_ND, self.rows_MD), k - 1, axis=1)[:, :k]
        weights_Nk = np.ones(near_Nk.shape)
        if self.by_distance:
            for place in range(k):
                weights_Nk[:, place] = np.linalg.norm(mapped_ND - self.rows_MD[near_Nk[:, place]], axis=1)
            # A row at distance 0 outvotes all that are further away.
            same_Nk = weights_Nk == 0
            has_same_N = same_Nk.any(axis=1)
            with np.errstate(divide="ignore"):
                weights_Nk = 1 / weights_Nk
            weights_Nk[has_same_N] = same_Nk[has_same_N]
        votes_NC = np.zeros((len(mapped_ND), self.num_classes))
        np.add.at(votes_NC, (np.arange(len(mapped_ND))[:, None], self.labels_M[near_Nk]), weights_Nk)
        result: Floats = votes_NC / votes_NC.sum(axis=1, keepdims=True)
        return result


@dataclass(frozen=True)
class Trees:
    """Decision trees whose leaves' values add up: a forest's probabilities, or the scores of boosting."""

    view: View
    roots_T: Whole
    left_E: Whole
    """Node for a feature up to the threshold; a leaf names itself."""
    right_E: Whole
    feature_E: Whole
    threshold_E: Floats
    values_EC: Floats
    start_C: Floats
    """What the leaves' values are added to."""
    is_forest: bool
    """Features are compared in float32 and the sum is the probabilities; else the sum is the scores of a softmax."""

    def probabilities(self, features_NF: Rows) -> Floats:
        """(N, C), rows sum to 1."""
        return _blocks(features_NF, self.view, self._block, len(self.start_C))

    def _block(self, mapped_ND: Floats) -> Floats:
        compared_ND = mapped_ND.astype(np.float32).astype(np.float64) if self.is_forest else mapped_ND
        image_N1 = np.arange(len(mapped_ND))[:, None]
        node_NT = np.broadcast_to(self.roots_T, (len(mapped_ND), len(self.roots_T)))
        for _ in range(MOST_DEPTH + 1):
            goes_left_NT = compared_ND[image_N1, self.feature_E[node_NT]] <= self.threshold_E[node_NT]
            after_NT = np.where(goes_left_NT, self.left_E[node_NT], self.right_E[node_NT])
            if np.array_equal(after_NT, node_NT):
                break
            node_NT = after_NT
        sums_NC = np.stack([self.values_EC[nodes_T].sum(axis=0) for nodes_T in node_NT]) + self.start_C
        if not self.is_forest:
            return softmax(sums_NC)
        result: Floats = sums_NC / sums_NC.sum(axis=1, keepdims=True)
        return result


# --- from arrays -------------------------------------------------------------------------------


def read_kernel(view: View, arrays: Arrays, num_classes: int) -> Kernel:
    """Support vectors from arrays that were received. Raises WireError."""
    classes_K = whole(arrays, "classes", 1, num_classes - 1)
    if len(classes_K) < 2 or not np.all(np.diff(classes_K) > 0):
        raise WireError("classes are not two or more in ascending order")
    support_SD, num_seen = need(arrays, "support", 2), len(classes_K)
    num_support_K = whole(arrays, "num_support", 1, len(support_SD))
    gamma = need(arrays, "gamma", 1)
    dual, intercepts = need(arrays, "dual", 2), need(arrays, "intercepts", 1)
    _require("support", support_SD.shape, (len(support_SD), view.width))
    _require("num_support", num_support_K.shape, (num_seen,))
    _require("dual", dual.shape, (num_seen - 1, len(support_SD)))
    _require("intercepts", intercepts.shape, (num_seen * (num_seen - 1) // 2,))
    _require("gamma", gamma.shape, (1,))
    if num_support_K.sum() != len(support_SD) or not gamma[0] > 0:
        raise WireError("support vectors by class do not add up, or gamma is not positive")
    return Kernel(view, support_SD, dual, intercepts, num_support_K, classes_K, float(gamma[0]), num_classes)


def read_neighbours(view: View, arrays: Arrays, num_classes: int, *, by_distance: bool) -> Neighbours:
    """Rows and their labels from arrays that were received. Raises WireError."""
    rows_MD = need(arrays, "rows", 2)
    _require("rows", rows_MD.shape, (len(rows_MD), view.width))
    labels_M = whole(arrays, "labels", 1, num_classes - 1)
    _require("labels", labels_M.shape, (len(rows_MD),))
    num_neighbours = whole(arrays, "num_neighbours", 1, len(rows_MD))
    _require("num_neighbours", num_neighbours.shape, (1,))
    if num_neighbours[0] < 1:
        raise WireError("num_neighbours is 0, expected at least 1")
    return Neighbours(view, rows_MD, labels_M, int(num_neighbours[0]), by_distance, num_classes)


def read_trees(view: View, arrays: Arrays, num_classes: int, *, is_forest: bool) -> Trees:
    """Trees from arrays that were received. Raises WireError, also for nodes from which no leaf is reached."""
    values_EC = need(arrays, "values", 2)
    num_nodes = len(values_EC)
    _require("values", values_EC.shape, (num_nodes, num_classes))
    roots_T = whole(arrays, "roots", 1, num_nodes - 1)
    left_E, right_E = (whole(arrays, name, 1, num_nodes - 1) for name in ("left", "right"))
    feature_E, threshold_E = whole(arrays, "feature", 1, view.width - 1), need(arrays, "threshold", 1)
    start_C = need(arrays, "start", 1)
    for name, array in (
        ("left", left_E),
        ("right", right_E),
        ("feature", feature_E),
        ("threshold", threshold_E),
    ):
        _require(name, array.shape, (num_nodes,))
    _require("start", start_C.shape, (num_classes,))
    if not len(roots_T):
        raise WireError("roots are empty, expected a tree or more")
    places_E = np.arange(num_nodes)
    is_leaf_E = (left_E == places_E) & (right_E == places_E)
    if not np.all(is_leaf_E | ((left_E > places_E) & (right_E > places_E))):
        raise WireError("a node leads back to itself or to one before it")
    if is_forest and (
        np.any(values_EC < 0) or np.any(start_C) or np.any(values_EC[is_leaf_E].sum(axis=1) <= 0)
    ):
        raise WireError("a forest has leaves without probabilities")
    if _depth(roots_T, left_E, right_E) > MOST_DEPTH:
        raise WireError(f"a tree is deeper than {MOST_DEPTH} steps")
    return Trees(view, roots_T, left_E, right_E, feature_E, threshold_E, values_EC, start_C, is_forest)


def _depth(roots_T: Whole, left_E: Whole, right_E: Whole) -> int:
    level, depth = np.unique(roots_T), 0
    while depth <= MOST_DEPTH:
        below = np.unique(np.concatenate([left_E[level], right_E[level]]))
        level = below[left_E[below] != below]
        if not len(level):
            return depth + 1
        depth += 1
    return depth


def whole(arrays: Arrays, name: str, num_axes: int, most: int) -> Whole:
    """The array `name` of whole numbers from 0 to `most`. Raises WireError if it is missing or has another form."""
    array: Array | None = arrays.get(name)
    if array is None:
        raise WireError(f"{name} is missing")
    if array.ndim != num_axes or array.dtype.kind not in "iu":
        raise WireError(f"{name} is not {num_axes}-dimensional, or not made of whole numbers")
    if array.size and (int(array.min()) < 0 or int(array.max()) > most):
        raise WireError(f"{name} has entries outside of 0 to {most}")
    return array.astype(np.int64)


def _require(name: str, actual: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if actual != expected:
        raise WireError(f"{name} is {list(actual)}, expected {list(expected)}")


# --- shared ------------------------------------------------------------------------------------


def _blocks(features_NF: Rows, view: View, apply: Callable[[Floats], Floats], num_classes: int) -> Floats:
    parts = [
        apply(view.of(features_NF[start : start + _BLOCK])) for start in range(0, len(features_NF), _BLOCK)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, num_classes))


def _squared_distances(left_ND: Floats, right_MD: Floats) -> Floats:
    """(N, M): |x|² - 2 x y + |y|², at least 0."""
    squares_NM = (left_ND**2).sum(axis=1)[:, None] - 2 * left_ND @ right_MD.T + (right_MD**2).sum(axis=1)
    result: Floats = np.maximum(squares_NM, 0)
    return result
