"""Heads that leave a site and heads that come to it, from hand-made features."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.heads import own_heads, steps, worker
from client.heads.features import Features
from common import wire
from common.config import StudyConfig
from common.errors import PolicyRefusal, WireError
from common.heads import travelling, under
from common.heads.travelling import Travelling
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
NONE = Features(np.zeros((0, 0), np.float32), np.zeros((0, 0)), np.zeros(0, np.int64), ())
TRAVEL = head_steps.TravelStep(heads=("near", "mean"))
SCORE = head_steps.ScoreStep(heads=(), travelling=(Travelling(name="near", owner="north"),))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_work", lambda folder, _: worker.main(folder))


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    local = [
        {"kind": "knn", "name": "near", "neighbours": 1, "scale": False, "travels": True},
        {"kind": "nearest_mean", "name": "mean", "scale": False, "travels": True},
        {"kind": "lda"},
    ]
    sites = {"train": ("north", "south"), "evaluate": ("unseen",)}
    return make_study(classes=("mel", "nv"), heads={"local": local}, sites=sites)


@pytest.fixture
def place(tmp_path: Path) -> own_heads.Place:
    return own_heads.Place(tmp_path, tmp_path / "study", 1, None, heads_may_leave=("knn", "nearest_mean"))


def answer(
    study: StudyConfig,
    step: head_steps.HeadStep,
    place: own_heads.Place,
    site: str = "north",
    train: Features = TRAIN,
    test: Features = TEST,
    arrays: dict[str, Any] | None = None,
) -> wire.HeadAnswer:
    plan = wire.HeadPlan(
        plan_id="h", site=site, study=study, round=1, weights_digest="w", step=step, arrays=arrays or {}
    )
    sides = {"train": train, "validation": NONE, "test": test}
    return steps.carry_out(plan, own_heads.FeatureTable("w", sides), place)


def problems(found: wire.HeadAnswer) -> dict[str, str | None]:
    return {result.title: result.problem for result in found.results}


def test_heads_leave_as_arrays_under_their_kind_and_name(study: StudyConfig, place: own_heads.Place) -> None:
    found = answer(study, TRAVEL, place)
    assert found.train_counts == (2, 2)
    assert found.results == ()
    assert found.arrays["fitted/knn/near/rows"].tolist() == TRAIN.features_NF.tolist()
    assert found.arrays["fitted/knn/near/labels"].tolist() == [0, 0, 1, 1]
    # The means are (2, 0) and (0, 2), so each weight is a mean and each bias half of its square, negative.
    assert found.arrays["fitted/nearest_mean/mean/weights"].tolist() == [[2, 0], [0, 2]]
    assert found.arrays["fitted/nearest_mean/mean/bias"].tolist() == [-2, -2]


def test_a_kind_that_the_policy_does_not_list_stays_and_the_others_leave(
    study: StudyConfig, place: own_heads.Place
) -> None:
    found = answer(study, TRAVEL, replace(place, heads_may_leave=("nearest_mean",)))
    assert problems(found) == {"local.near@north": "may_not_leave"}
    assert {name.split("/")[1] for name in found.arrays} == {"nearest_mean"}


def test_a_head_that_is_too_large_stays(
    study: StudyConfig, place: own_heads.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 8 bytes each: 17 numbers of the neighbours, 10 of the means
    monkeypatch.setattr(travelling, "LARGEST_HEAD", 100)
    found = answer(study, TRAVEL, place)
    assert problems(found) == {"local.near@north": "too_large"}


def test_a_site_of_one_class_has_no_head_that_could_leave(study: StudyConfig, place: own_heads.Place) -> None:
    one_class = replace(TRAIN, labels_N=np.zeros(4, np.int64))
    found = answer(study, TRAVEL, place, train=one_class)
    assert problems(found) == {"local.near@north": "one_class", "local.mean@north": "one_class"}
    assert found.arrays == {}


def test_features_that_are_mostly_one_patients_do_not_leave(
    study: StudyConfig, place: own_heads.Place
) -> None:
    with pytest.raises(PolicyRefusal, match="more than 74% of a class's sum"):
        answer(study, TRAVEL, replace(place, max_patient_share=0.74))


def test_a_head_that_does_not_travel_in_the_study_is_not_sent(
    study: StudyConfig, place: own_heads.Place
) -> None:
    with pytest.raises(WireError, match=r"1 head\(s\) that do not travel"):
        answer(study, head_steps.TravelStep(heads=("lda",)), place)


def test_a_site_that_only_scores_sends_no_head(study: StudyConfig, place: own_heads.Place) -> None:
    with pytest.raises(PolicyRefusal, match="this site only scores"):
        answer(study, TRAVEL, place, site="unseen")


def sent(study: StudyConfig, place: own_heads.Place) -> dict[str, Any]:
    """North's neighbours as the server passes them on."""
    arrays = answer(study, TRAVEL, place).arrays
    start = "fitted/knn/near/"
    near = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
    return under("head/local.near@north", near)


def test_a_head_that_came_is_scored_beside_the_softmax(study: StudyConfig, place: own_heads.Place) -> None:
    """Each test image lies nearest to a row of its class; the softmax takes both for the first class."""
    found = answer(study, SCORE, place, site="unseen", arrays=sent(study, place))
    scores = {result.title: result.score and result.score.confusion_CC.tolist() for result in found.results}
    assert scores == {"softmax": [[1, 0], [1, 0]], "local.near@north": [[1, 0], [0, 1]]}
    assert found.results[1].paired is not None


def test_an_own_head_that_comes_back_is_not_fitted_again(
    study: StudyConfig, place: own_heads.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, jobs = sent(study, place), []
    monkeypatch.setattr(worker, "_work", lambda folder, job: (jobs.append(job), worker.main(folder)))
    found = answer(study, SCORE, place, arrays=arrays)
    assert [job.config.title for job in jobs] == ["mean", "lda"]
    by_title = {result.title: result.score for result in found.results}
    assert by_title["local.near"] == by_title["local.near@north"]


def test_a_head_on_features_of_another_width_is_named_and_the_others_are_scored(
    study: StudyConfig, place: own_heads.Place
) -> None:
    wider = replace(TEST, features_NF=np.zeros((2, 3), np.float32))
    found = answer(study, SCORE, place, site="unseen", test=wider, arrays=sent(study, place))
    assert problems(found) == {"softmax": None, "local.near@north": "other_features"}


def test_a_site_without_test_images_scores_nothing(study: StudyConfig, place: own_heads.Place) -> None:
    found = answer(study, SCORE, place, site="unseen", test=NONE, arrays=sent(study, place))
    assert [result.score and result.score.num_images for result in found.results] == [0, 0]
