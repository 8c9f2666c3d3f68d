"""Classical heads with scikit-learn: fitting, probabilities and files."""

import json

import numpy as np
import pytest
from pydantic import TypeAdapter

from client.heads import sklearn_heads
from client.heads.sklearn_heads import HeadLabel
from common.config.heads import LocalHead, LocalKnn, LocalLda, LocalNearestMean, LocalSvmLinear, Vote
from common.errors import SiteDataError
from common.heads import ABSENT

KINDS = [
    "svm_rbf", "svm_linear", "knn", "logistic", "random_forest", "gradient_boosting", "lda", "naive_bayes",
    "nearest_mean",
]  # fmt: skip
LABEL = HeadLabel(
    title="local.lda", study="demo", study_fingerprint="f" * 64, classes=("a", "b", "c"), layer=None,
    weights_digest="0" * 64, num_features=2,
)  # fmt: skip


def clusters():
    """Forty images each of classes 0 and 2: a leaf of gradient boosting needs twenty."""
    draws = np.random.default_rng(0)
    features_ND = np.concatenate([draws.normal(0, 1, (40, 2)), draws.normal(9, 1, (40, 2))])
    return features_ND, np.repeat([0, 2], 40)


def fit(config):
    features_ND, labels_N = clusters()
    return sklearn_heads.fit(config, features_ND, labels_N, [*range(80)], seed=0, threads=1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_separates_two_clusters_and_gives_an_unseen_class_nothing(kind):
    config = TypeAdapter(LocalHead).validate_python({"kind": kind})
    probabilities_NC = sklearn_heads.probabilities(fit(config), np.array([[0.0, 0.0], [9.0, 9.0]]), 3)
    assert probabilities_NC.argmax(axis=1).tolist() == [0, 2]
    assert probabilities_NC.sum(axis=1) == pytest.approx([1, 1])
    assert probabilities_NC[:, 1].tolist() == [0, 0]


def test_a_site_without_images_on_a_side_has_no_probabilities_of_them():
    assert sklearn_heads.probabilities(fit(LocalLda()), np.zeros((0, 2)), 3).shape == (0, 3)


def test_several_values_are_chosen_among_by_cross_validation():
    head = fit(LocalSvmLinear(c=(0.01, 1.0))).steps[-1][1]
    assert head.C in (0.01, 1.0)


def test_several_values_are_chosen_by_the_validation_images_where_there_are_any():
    # One neighbour says what its row says; with 81 all rows vote, and 41 are of class 2.
    features_ND, labels_N = np.array([[float(place)] for place in range(81)]), np.repeat([0, 2], [40, 41])
    config = LocalKnn(neighbours=(1, 81), weights="uniform", scale=False)

    def chosen(labels):
        validation = np.array([[1.0], [2.0], [79.0]]), np.array(labels)
        pipeline = sklearn_heads.fit(
            config, features_ND, labels_N, [*range(81)], seed=0, threads=1, validation=validation
        )
        return pipeline.steps[-1][1].n_neighbors

    assert chosen([0, 0, 2]) == 1
    assert chosen([2, 2, 2]) == 81


def test_of_values_that_are_equally_good_the_first_is_taken():
    features_ND, labels_N = clusters()
    validation = features_ND[[0, 79]], labels_N[[0, 79]]
    pipeline = sklearn_heads.fit(
        LocalKnn(neighbours=(3, 1)),
        features_ND,
        labels_N,
        [*range(80)],
        seed=0,
        threads=1,
        validation=validation,
    )
    assert pipeline.steps[-1][1].n_neighbors == 3


def test_components_are_no_more_than_there_are_features():
    assert fit(LocalNearestMean(pca=50)).named_steps["pca"].n_components == 2


@pytest.mark.parametrize("of", ["logistic", "svm_linear", "lda", "nearest_mean"])
def test_a_vote_is_linear_and_has_no_vote_for_an_unseen_class(of):
    features_ND, labels_N = clusters()
    fitted = sklearn_heads.coefficients(Vote(of=of), features_ND, labels_N, 3, seed=0)
    scores_NC = features_ND @ fitted["weights"] + fitted["bias"]
    assert scores_NC.argmax(axis=1).tolist() == labels_N.tolist()
    assert fitted["bias"][1] == ABSENT


def test_a_head_is_the_same_after_a_round_trip_to_disk(tmp_path):
    pipeline = fit(LocalLda())
    sklearn_heads.save(tmp_path / "local.lda", pipeline, LABEL)
    loaded, label = sklearn_heads.load(tmp_path / "local.lda")
    features_ND, _ = clusters()
    np.testing.assert_array_equal(
        sklearn_heads.probabilities(loaded, features_ND, 3),
        sklearn_heads.probabilities(pipeline, features_ND, 3),
    )
    assert label.model_copy(update={"sklearn": None}) == LABEL


def test_a_head_of_another_scikit_learn_is_refused(tmp_path):
    sklearn_heads.save(tmp_path / "local.lda", fit(LocalLda()), LABEL)
    path = tmp_path / "local.lda.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sklearn": "0.1"}))
    with pytest.raises(SiteDataError, match=r"was fitted by scikit-learn 0\.1.*fit it again"):
        sklearn_heads.load(tmp_path / "local.lda")


def test_a_file_with_types_that_no_head_has_is_not_loaded(tmp_path):
    from skops import io as skops

    sklearn_heads.save(tmp_path / "local.lda", fit(LocalLda()), LABEL)
    (tmp_path / "local.lda.skops").write_bytes(skops.dumps({"other": HeadLabel}))
    with pytest.raises(SiteDataError, match=r"expected only the types of Consilium's heads"):
        sklearn_heads.load(tmp_path / "local.lda")


def test_a_damaged_head_is_named(tmp_path):
    with pytest.raises(SiteDataError, match=r"local\.lda is not a whole head"):
        sklearn_heads.load(tmp_path / "local.lda")
