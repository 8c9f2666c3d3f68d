"""The head worker: one fit in a process of its own, and the reasons why there is no head."""

from pathlib import Path

import numpy as np
import pytest

from client.heads import worker
from client.heads.worker import HeadUnavailable, Job
from common.config.heads import LocalForest, LocalKnn, LocalNearestMean

# Two classes, far apart in both features.
TRAIN = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0]], np.float32)
LABELS = np.array([0, 0, 2, 2])
TEST = np.array([[0.0, 0.5], [9.0, 8.5]], np.float32)
GROUPS = ("a", "a", "b", "c")


def job(config=None, label=None):
    return Job(config=config or LocalNearestMean(scale=False), num_classes=3, seed=0, threads=1, label=label)


def run(folder, job, labels=LABELS, keep=None):
    return worker.run(job, TRAIN, labels, GROUPS, TEST, state_dir=folder, keep=keep)


@pytest.mark.slow
def test_a_head_is_fitted_in_another_process_and_leaves_no_features_behind(tmp_path: Path) -> None:
    probabilities_NC = run(tmp_path, job())["probabilities"]
    assert probabilities_NC.argmax(axis=1).tolist() == [0, 2]
    assert probabilities_NC[:, 1].tolist() == [0, 0]  # no training image of class 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_worker_chooses_by_the_validation_images(tmp_path: Path) -> None:
    # All four rows vote alike, 2 to 2, which is class 0; one neighbour sees class 2.
    choosing = LocalKnn(neighbours=(4, 1), weights="uniform", scale=False)
    found = [
        worker.run(
            job(choosing), TRAIN, LABELS, GROUPS, TEST, state_dir=tmp_path, validation=(TEST, labels_N)
        )
        for labels_N in (np.array([0, 2]), np.array([0, 0]))
    ]
    assert [each["probabilities"].argmax(axis=1).tolist() for each in found] == [[0, 2], [0, 0]]


def test_one_class_makes_no_head(tmp_path: Path) -> None:
    with pytest.raises(HeadUnavailable, match=r"1 class\(es\).*needs two") as caught:
        run(tmp_path, job(), labels=np.zeros(4, np.int64))
    assert caught.value.problem == "one_class"


@pytest.mark.slow
def test_a_fit_beyond_its_time_limit_is_ended(tmp_path: Path) -> None:
    with pytest.raises(HeadUnavailable, match=r"not fitted within the time limit of 0\.01 s") as caught:
        run(tmp_path, job(LocalForest(time_limit_s=0.01)))
    assert caught.value.problem == "too_slow"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_fit_that_fails_is_reported_with_the_workers_own_error(tmp_path: Path) -> None:
    with pytest.raises(HeadUnavailable, match="validation error") as caught:
        run(tmp_path, job(label={"title": "local.nearest_mean"}))  # a label without its other fields
    assert caught.value.problem == "failed"
