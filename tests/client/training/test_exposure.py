"""How much of a round is due to one patient, by hand."""

from typing import Any

import pytest
import torch

from client.training.exposure import Exposure, exposure
from client.training.fit import StudyPosition
from common.config import LocalConfig

EIGHT = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def exposed(groups: str, **local: Any) -> Exposure:
    settings = {"epochs": 1, "augmentation": "none", **local}
    return exposure(EIGHT, groups, LocalConfig.model_validate(settings), 0, StudyPosition(1, 1), 2)


def test_one_step_on_all_images_weighs_patients_by_their_images() -> None:
    assert exposed("abbccddd", batch_size="all") == Exposure(4, pytest.approx(3 / 8))


def test_the_smallest_full_batch_counts() -> None:
    """Eight patients in batches of three, three and two; the last, shorter one does not count."""
    assert exposed("abcdefgh", batch_size=3).fewest_patients == 3


def test_images_of_one_patient_are_one_patient_in_a_batch() -> None:
    assert exposed("aaaaaaaa", batch_size=4) == Exposure(1, 1.0)


def test_a_patient_in_a_last_batch_of_two_weighs_more_than_those_before() -> None:
    """Steps on six and on two images weigh the same: 1/2 x 1/2 for each of the last two, 1/2 x 1/6 for the others."""
    assert exposed("abcdefgh", batch_size=6).largest_share == pytest.approx(1 / 4)


def test_steps_whose_learning_rate_vanishes_count_for_nothing() -> None:
    """Two steps on four images; the second is 1e-30 of the first."""
    vanishing = {"kind": "step", "milestones": [0.5], "gamma": 1e-30}
    assert exposed("abcdefgh", batch_size=4, schedule=vanishing).largest_share == pytest.approx(1 / 4)
    assert exposed("abcdefgh", batch_size=4).largest_share == pytest.approx(1 / 8)


def test_an_image_of_a_rare_class_weighs_as_its_loss_does() -> None:
    """Balanced over one image of a class and seven of the other, that one is half of the loss."""
    labels = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1])
    local = LocalConfig.model_validate(
        {"epochs": 1, "batch_size": "all", "class_weights": "balanced", "augmentation": "none"}
    )
    assert exposure(labels, "abcdefgh", local, 0, StudyPosition(1, 1), 2).largest_share == pytest.approx(
        1 / 2
    )
