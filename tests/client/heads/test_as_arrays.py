"""Heads of scikit-learn's as arrays: the same probabilities and decisions as scikit-learn's own."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from client.heads import as_arrays, sklearn_heads
from common.config.heads import LocalHead
from common.heads import travelling

SETTINGS = [
    {"kind": "svm_rbf"},
    {"kind": "svm_rbf", "gamma": 0.3, "class_weights": "none"},
    {"kind": "svm_linear"},
    {"kind": "knn"},
    {"kind": "knn", "weights": "uniform", "neighbours": 3},
    {"kind": "logistic"},
    {"kind": "random_forest", "trees": 12},
    {"kind": "gradient_boosting", "iterations": 6},
    {"kind": "lda"},
    {"kind": "naive_bayes", "priors": "counted"},
    {"kind": "nearest_mean"},
]
NUM_CLASSES, WIDTH = 4, 6


@pytest.mark.parametrize("seen", [(0, 2), (0, 1, 3), (0, 1, 2, 3)], ids=["two", "three", "four"])
@pytest.mark.parametrize("view", [{}, {"pca": 4}, {"scale": False}], ids=["scaled", "pca", "raw"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_head_of_arrays_decides_as_scikit_learn_does(settings, view, seen):
    """Of the four classes of the study, the head has seen two, three or all; clusters overlap by half."""
    config = TypeAdapter(LocalHead).validate_python({**settings, **view})
    draws = np.random.default_rng(3)
    train_ND = np.concatenate([draws.normal(0.7 * label, 1.5, (40, WIDTH)) for label in seen]).astype(
        np.float32
    )
    labels_N = np.repeat(seen, 40)
    test_ND = draws.normal(1, 2, (300, WIDTH)).astype(np.float32)
    pipeline = sklearn_heads.fit(config, train_ND, labels_N, [*range(len(labels_N))], seed=0, threads=1)
    arrays = as_arrays.arrays_of(pipeline, WIDTH, NUM_CLASSES)
    assert arrays.keys() - {"shift", "scale", "components"} == travelling.names_of(config)
    found_NC = travelling.read(config, arrays, NUM_CLASSES).probabilities(test_ND)
    np.testing.assert_allclose(
        found_NC, sklearn_heads.probabilities(pipeline, test_ND, NUM_CLASSES), rtol=0, atol=1e-12
    )
    if config.kind == "svm_rbf":
        pipeline.set_params(head__break_ties=len(seen) > 2)  # else equal votes go to the class named first
    assert found_NC.argmax(axis=1).tolist() == pipeline.predict(test_ND.astype(np.float64)).tolist()


def test_what_is_no_head_of_a_study_is_refused():
    from sklearn.dummy import DummyClassifier
    from sklearn.pipeline import Pipeline

    pipeline = Pipeline([("head", DummyClassifier())]).fit([[0.0], [1.0]], [0, 1])
    with pytest.raises(TypeError, match="found a DummyClassifier"):
        as_arrays.arrays_of(pipeline, 1, 2)
