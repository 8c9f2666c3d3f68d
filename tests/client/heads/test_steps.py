"""One step towards heads at a site: what it answers, and what it refuses, from hand-made features."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.heads import own_heads, steps
from client.heads.features import Features
from common import wire
from common.config import StudyConfig
from common.errors import PolicyRefusal, WireError
from common.heads import HeadForm, under
from common.wire import head_steps

MakeStudy = Callable[..., StudyConfig]

# Four training images with two features, two of each class, of four patients; two test images.
TRAIN = Features(
    np.array([[1, 0], [3, 0], [0, 1], [0, 3]], np.float32),
    np.zeros((4, 2)),
    np.array([0, 0, 1, 1]),
    tuple("abcd"),
)
TEST = Features(
    np.array([[2, 0], [0, 2]], np.float32), np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), ("e", "f")
)
HEADS = {"federated": [{"kind": "nearest_mean"}, {"kind": "logistic"}, {"kind": "vote"}]}


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    return make_study(classes=("mel", "nv"), heads=HEADS)


@pytest.fixture
def place(tmp_path: Path) -> own_heads.Place:
    return own_heads.Place(tmp_path, tmp_path / "study", 1, None)


def answer(
    study: StudyConfig, step: head_steps.HeadStep, place: own_heads.Place, site: str = "north", **arrays: Any
) -> wire.HeadAnswer:
    plan = wire.HeadPlan(
        plan_id="h", site=site, study=study, round=1, weights_digest="w", step=step,
        arrays={name.replace("__", "/"): value for name, value in arrays.items()},
    )  # fmt: skip
    table = own_heads.FeatureTable("w", {"train": TRAIN, "validation": TEST, "test": TEST})
    return steps.carry_out(plan, table, place)


def raw(**changes: Any) -> head_steps.StatisticsStep:
    request = {"name": "raw", "class_weights": (1.0, 1.0), **changes}
    return head_steps.StatisticsStep(views=(head_steps.ViewRequest.model_validate(request),))


def test_sums_of_the_features_as_they_are(study: StudyConfig, place: own_heads.Place) -> None:
    found = answer(study, raw(squares=True), place)
    assert found.train_counts == (2, 2)
    assert found.arrays["statistics/raw/sums"].tolist() == [[4, 0], [0, 4]]
    assert found.arrays["statistics/raw/squares"].tolist() == [[10, 0], [0, 10]]


def test_a_view_shifts_and_scales_the_features_first(study: StudyConfig, place: own_heads.Place) -> None:
    """(1 - 1) / 2 + (3 - 1) / 2 = 1 for the first class and feature."""
    found = answer(
        study, raw(), place, view__raw__shift=np.array([1.0, 0.0]), view__raw__scale=np.array([2.0, 1.0])
    )
    assert found.arrays["statistics/raw/sums"].tolist() == [[1, 0], [-1, 4]]


def test_a_gradient_at_zero_is_half_of_each_class(study: StudyConfig, place: own_heads.Place) -> None:
    objective = head_steps.Objective(name="logistic", loss="softmax", class_weights=(1.0, 1.0))
    step = head_steps.GradientsStep(objectives=(objective,))
    found = answer(study, step, place, points__logistic=np.zeros((3, 2)))
    assert found.arrays["losses/logistic"] == pytest.approx([4 * np.log(2)])
    np.testing.assert_allclose(found.arrays["gradients/logistic"], [[-2, 2], [2, -2], [0, 0]], atol=1e-12)


@pytest.mark.parametrize("points", [np.zeros((2, 2)), np.zeros((3, 3)), np.full((3, 2), np.nan)])
def test_points_of_another_shape_or_without_numbers_are_refused(
    study: StudyConfig, place: own_heads.Place, points: Any
) -> None:
    objective = head_steps.Objective(name="logistic", loss="softmax", class_weights=(1.0, 1.0))
    with pytest.raises(WireError, match=r"found no array of shape \[3, 2\]"):
        answer(study, head_steps.GradientsStep(objectives=(objective,)), place, points__logistic=points)


def test_weights_of_another_number_of_classes_are_refused(study: StudyConfig, place: own_heads.Place) -> None:
    with pytest.raises(WireError, match="found weights of 3 classes, expected 2"):
        answer(study, raw(class_weights=(1.0, 1.0, 1.0)), place)


def test_a_gradient_without_the_images_of_a_class_is_refused(
    study: StudyConfig, place: own_heads.Place
) -> None:
    objective = head_steps.Objective(name="logistic", loss="softmax", class_weights=(1.0, 0.0))
    with pytest.raises(PolicyRefusal, match="would leave out the images of a class"):
        answer(
            study, head_steps.GradientsStep(objectives=(objective,)), place, points__logistic=np.zeros((3, 2))
        )


def test_a_site_that_only_scores_sends_no_sums(study: StudyConfig, place: own_heads.Place) -> None:
    with pytest.raises(PolicyRefusal, match="this site only scores"):
        answer(study, raw(), place, site="unseen")


def test_coefficients_of_a_vote_that_the_study_does_not_list_are_refused(
    study: StudyConfig, place: own_heads.Place
) -> None:
    with pytest.raises(WireError, match=r"a plan for 1 vote\(s\) that the study does not list"):
        answer(study, head_steps.CoefficientsStep(votes=("other",)), place)


def test_a_score_is_of_the_softmax_and_of_each_head_on_the_test_images(
    study: StudyConfig, place: own_heads.Place
) -> None:
    """The softmax takes both images for the first class; the head looks at the larger feature and is right twice."""
    head = {"shift": np.zeros(2), "scale": np.ones(2), "weights": np.eye(2), "bias": np.zeros(2)}
    form = HeadForm(title="federated.nearest_mean", form="linear")
    arrays = {
        name.replace("/", "__"): value for name, value in under("head/federated.nearest_mean", head).items()
    }
    found = answer(study, head_steps.ScoreStep(heads=(form,)), place, **arrays)
    assert found.train_counts == (0, 0)
    scores = {result.title: result.score for result in found.results}
    assert {title: score and score.confusion_CC.tolist() for title, score in scores.items()} == {
        "softmax": [[1, 0], [1, 0]],
        "federated.nearest_mean": [[1, 0], [0, 1]],
    }


def test_a_sum_that_is_one_patients_does_not_leave(study: StudyConfig, place: own_heads.Place) -> None:
    """Lengths of the first class are 1 and 3: the longer one has three quarters."""
    assert answer(study, raw(), replace(place, max_patient_share=0.75)).arrays
    with pytest.raises(PolicyRefusal, match="more than 74% of a class's sum") as refused:
        answer(study, raw(), replace(place, max_patient_share=0.74))
    assert refused.value.reason == "max_patient_share: a sum of features would be of too few patients"


def test_validation_images_are_counted_by_their_distance_if_the_site_lets_that_leave(
    make_study: MakeStudy, place: own_heads.Place
) -> None:
    study = make_study(classes=("mel", "nv"), out_of_distribution={})
    # The validation images are (2, 0) and (0, 2). One class has its mean at (1, 0): distances 1 and the root of 5.
    arrays = {
        "detector__shift": np.zeros(2),
        "detector__scale": np.ones(2),
        "detector__whitening": np.eye(2),
        "detector__centres": np.array([[1.0, 0.0]]),
    }
    place = replace(place, num_bins=4)  # they end at 1, 2, 4 and 8
    found = answer(study, head_steps.OutliersStep(), place, **arrays)
    assert (found.outliers, found.train_counts, dict(found.arrays)) == ((0, 1, 1, 0), (0, 0), {})
    kept_back = answer(study, head_steps.OutliersStep(), replace(place, counts_outliers=False), **arrays)
    assert kept_back.outliers is None
    assert "outliers" not in kept_back.model_dump()
    with pytest.raises(PolicyRefusal, match="this site only scores"):
        answer(study, head_steps.OutliersStep(), place, site="unseen", **arrays)
    with pytest.raises(WireError, match="expected those of an outlier score"):
        answer(study, head_steps.OutliersStep(), place)


def test_a_study_without_outlier_scores_gets_no_counts(study: StudyConfig, place: own_heads.Place) -> None:
    with pytest.raises(WireError, match="outlier scores in a study without any"):
        answer(study, head_steps.OutliersStep(), place)
