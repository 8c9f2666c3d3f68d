"""Heads of scikit-learn's as arrays, in the form that `common/heads/travelling.py` reads.

Some of what a tree or a booster is made of has no public name in scikit-learn. The lock file names one version, and
a test compares every kind's probabilities with scikit-learn's own.

D features of a view, C classes of the study, K classes that the head has seen, E nodes of all trees.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, LinearSVC

from common.heads import ABSENT, Floats
from common.weights import Array

Whole = npt.NDArray[np.int64]


def arrays_of(pipeline: Pipeline, num_features: int, num_classes: int) -> dict[str, Array]:
    """View and head by name. `num_features` is the width of the features before scaling."""
    head = pipeline.steps[-1][1]
    return {**_view(pipeline, num_features), **_head(head, head.classes_.astype(np.int64), num_classes)}


def _view(pipeline: Pipeline, num_features: int) -> dict[str, Array]:
    shift_F, scale_F = np.zeros(num_features), np.ones(num_features)
    if (scaler := pipeline.named_steps.get("scale")) is not None:
        shift_F, scale_F = scaler.mean_, scaler.scale_
    if (pca := pipeline.named_steps.get("pca")) is None:
        return {"shift": shift_F, "scale": scale_F}
    shift_F = shift_F + pca.mean_ * scale_F
    return {"shift": shift_F, "scale": scale_F, "components": np.ascontiguousarray(pca.components_.T)}


def _head(head: Any, seen_K: Whole, num_classes: int) -> dict[str, Array]:
    match head:
        case LogisticRegression() | LinearSVC() | LinearDiscriminantAnalysis():
            return dict(linear(head, seen_K, num_classes))
        case NearestCentroid():
            means_KD = head.centroids_
            return dict(spread(means_KD.T, -0.5 * (means_KD**2).sum(axis=1), seen_K, num_classes))
        case GaussianNB():
            width = head.theta_.shape[1]
            means_CD, variances_CD = np.zeros((num_classes, width)), np.ones((num_classes, width))
            priors_C = np.full(num_classes, ABSENT)
            means_CD[seen_K], variances_CD[seen_K] = head.theta_, head.var_
            priors_C[seen_K] = np.log(head.class_prior_)
            return {"means": means_CD, "variances": variances_CD, "priors": priors_C}
        case SVC():
            return {
                "support": head.support_vectors_,
                "dual": head.dual_coef_,
                "intercepts": head.intercept_,
                "num_support": head.n_support_.astype(np.int64),
                "classes": seen_K,
                "gamma": np.array([head._gamma]),
            }
        case KNeighborsClassifier():
            return {
                "rows": head._fit_X,
                "labels": seen_K[head._y],
                "num_neighbours": np.array([head.n_neighbors], np.int64),
            }
        case RandomForestClassifier():
            return _forest(head, seen_K, num_classes)
        case HistGradientBoostingClassifier():
            return _boosting(head, seen_K, num_classes)
        case _:
            raise TypeError(f"found a {type(head).__name__}, expected a head of the study's kinds")


def linear(head: Any, seen_K: Whole, num_classes: int) -> dict[str, Floats]:
    """Weights (D, C) and bias (C) of a linear head; a class that it has not seen has probability 0."""
    weights_DK, bias_K = head.coef_.T, head.intercept_
    if len(seen_K) == 2:  # scikit-learn keeps one column, for the second class
        first = -1.0 if isinstance(head, LinearSVC) else 0.0
        weights_DK = np.hstack([first * weights_DK, weights_DK])
        bias_K = np.array([first * bias_K[0], bias_K[0]])
    return spread(weights_DK, bias_K, seen_K, num_classes)


def spread(
    weights_DK: npt.NDArray[np.floating], bias_K: npt.NDArray[np.floating], seen_K: Whole, num_classes: int
) -> dict[str, Floats]:
    """Columns of the classes seen among those of all classes."""
    weights_DC, bias_C = np.zeros((len(weights_DK), num_classes)), np.full(num_classes, ABSENT)
    weights_DC[:, seen_K], bias_C[seen_K] = weights_DK, bias_K
    return {"weights": weights_DC, "bias": bias_C}


def _forest(forest: RandomForestClassifier, seen_K: Whole, num_classes: int) -> dict[str, Array]:
    parts: list[tuple[Array, ...]] = []
    for one in forest.estimators_:
        tree = one.tree_
        is_leaf = tree.children_left < 0
        values_EC = np.zeros((tree.node_count, num_classes))
        values_EC[:, seen_K] = tree.value[:, 0, :] / tree.value[:, 0, :].sum(axis=1, keepdims=True)
        parts.append(
            (tree.children_left, tree.children_right, tree.feature, tree.threshold, is_leaf, values_EC)
        )
    return _joined(parts, np.zeros(num_classes))


def _boosting(boosting: HistGradientBoostingClassifier, seen_K: Whole, num_classes: int) -> dict[str, Array]:
    # With two classes there is one tree an iteration, for the second one, and the first has score 0.
    columns_K = seen_K if len(seen_K) > 2 else seen_K[1:]
    start_C = np.full(num_classes, ABSENT)
    start_C[seen_K] = 0
    start_C[columns_K] = np.ravel(boosting._baseline_prediction)
    parts: list[tuple[Array, ...]] = []
    for iteration in boosting._predictors:
        for column, predictor in zip(columns_K, iteration, strict=True):
            nodes = predictor.nodes
            is_leaf = nodes["is_leaf"].astype(bool)
            values_EC = np.zeros((len(nodes), num_classes))
            values_EC[:, column] = np.where(is_leaf, nodes["value"], 0)
            parts.append(
                (
                    nodes["left"],
                    nodes["right"],
                    nodes["feature_idx"],
                    nodes["num_threshold"],
                    is_leaf,
                    values_EC,
                )
            )
    return _joined(parts, start_C)


def _joined(parts: Sequence[tuple[Array, ...]], start_C: Floats) -> dict[str, Array]:
    """Trees one after the other; a leaf names itself, and looks at the first feature."""
    found: dict[str, list[Array]] = {name: [] for name in ("left", "right", "feature", "threshold", "values")}
    roots, first = [], 0
    for left_E, right_E, feature_E, threshold_E, is_leaf_E, values_EC in parts:
        own_E = first + np.arange(len(values_EC))
        roots.append(first)
        found["left"].append(np.where(is_leaf_E, own_E, first + left_E.astype(np.int64)))
        found["right"].append(np.where(is_leaf_E, own_E, first + right_E.astype(np.int64)))
        found["feature"].append(np.where(is_leaf_E, 0, feature_E.astype(np.int64)))
        found["threshold"].append(np.where(is_leaf_E, 0.0, threshold_E))
        found["values"].append(values_EC)
        first += len(values_EC)
    whole = {name: np.concatenate(arrays) for name, arrays in found.items()}
    for name in ("left", "right", "feature"):
        whole[name] = whole[name].astype(np.int32)
    return {**whole, "roots": np.array(roots, np.int32), "start": start_C}
