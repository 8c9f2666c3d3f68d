"""How much of a round is due to one patient, by hand."""

from typing import Any

import pytest
import torch

from client.training.exposure import Exposure, exposure
from client.training.fit import StudyPosition
from common.config import Algorithm, FedProx, LocalConfig

EIGHT = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


PLAIN = {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}


def exposed(
    groups: str, algorithm: Algorithm | None = None, momentum: float | None = None, **local: Any
) -> Exposure:
    settings = {"epochs": 1, "augmentation": "none", "optimizer": PLAIN, **local}
    chosen = LocalConfig.model_validate(settings)
    labels = EIGHT[: len(groups)]
    return exposure(labels, groups, chosen, 0, StudyPosition(1, 1), 2, algorithm, momentum)


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
        {"epochs": 1, "batch_size": "all", "class_weights": "site", "augmentation": "none"}
    )
    assert exposure(labels, "abcdefgh", local, 0, StudyPosition(1, 1), 2).largest_share == pytest.approx(
        1 / 2
    )


# --- later steps that undo earlier ones -------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "algorithm"),
    [
        ({**PLAIN, "weight_decay": 1.0}, None),
        (PLAIN, FedProx(mu=1.0)),
        ({"kind": "adamw", "lr": 0.5, "weight_decay": 2.0}, None),
    ],
)
def test_a_pull_that_undoes_all_before_leaves_the_last_batch_alone(
    optimizer: dict[str, Any], algorithm: Algorithm | None
) -> None:
    """Steps on six and on two images; learning rate times pull is 1, so the second has all the weight: 1/2 each."""
    assert exposed("abcdefgh", algorithm, batch_size=6, optimizer=optimizer).largest_share == pytest.approx(
        1 / 2
    )


def test_a_pull_of_a_half_halves_what_was_before() -> None:
    """1/2 and 1: each of the last two has 2/3 x 1/2."""
    pulled = exposed("abcdefgh", batch_size=6, optimizer={**PLAIN, "weight_decay": 0.5})
    assert pulled.largest_share == pytest.approx(1 / 3)


def test_momentum_makes_earlier_steps_count_more() -> None:
    """3/2 and 1: each of the last two has 2/5 x 1/2."""
    assert exposed(
        "abcdefgh", batch_size=6, optimizer={**PLAIN, "momentum": 0.5}
    ).largest_share == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    "local",
    [
        {"optimizer": {"kind": "adam", "lr": 0.1}},
        {"clip_grad_norm": 1e-6},
        {"optimizer": {"kind": "rmsprop", "lr": 0.1}, "clip_grad_norm": 1.0},
    ],
)
def test_a_strong_pull_among_rescaled_gradients_makes_every_step_hold_alone(local: dict[str, Any]) -> None:
    strong = exposed("abcdefgh", FedProx(mu=1.0), batch_size=6, **local)
    assert strong == Exposure(2, pytest.approx(1 / 2))
    force = exposed("abcdefgh", FedProx(mu=1.0, squared=False), batch_size=6, **local)
    assert force == strong


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_an_honest_pull_changes_next_to_nothing(kind: str) -> None:
    honest = exposed(
        "abcdefgh", FedProx(mu=0.01), batch_size=6, optimizer={"kind": kind, "lr": 1e-3, "weight_decay": 0.01}
    )
    free = exposed("abcdefgh", batch_size=6, optimizer={"kind": kind, "lr": 1e-3, "weight_decay": 0.0})
    assert honest.largest_share == pytest.approx(free.largest_share, rel=1e-4)


@pytest.mark.parametrize("lr", [1e308, 1e-300])
def test_a_learning_rate_at_the_end_of_the_numbers_hides_nothing(lr: float) -> None:
    """The sum of two learning rates of 1e308 is infinite, and a share of it 0."""
    assert exposed("abcdefgh", batch_size=6, optimizer={**PLAIN, "lr": lr}).largest_share == pytest.approx(
        1 / 4
    )


# --- what leaves beside the gradients ---------------------------------------------------------------


def test_patients_of_whom_no_image_is_drawn_are_left_out() -> None:
    """Two rounds of six of eight patients differ by two patients each."""
    assert exposed("abcdefgh", batch_size=6, steps=1, epochs=None).left_out == 2
    assert exposed("abcdefgh", batch_size=8).left_out == 0


def test_the_last_forward_pass_has_the_most_of_the_running_statistics() -> None:
    """Passes on six and two images, 1/10 each of what is there: 0.09 and 0.1, so 0.1 / 0.19 / 2 for the last two."""
    vanishing = {"kind": "step", "milestones": [0.5], "gamma": 1e-30}
    shown = exposed("abcdefgh", momentum=0.1, batch_size=6, schedule=vanishing)
    assert shown.largest_share == pytest.approx(1 / 6)
    assert shown.largest_share_of_statistics == pytest.approx(0.1 / 0.19 / 2)


def test_micro_batches_are_forward_passes_of_their_own() -> None:
    """Two of one image each: 0.09 and 0.1."""
    shown = exposed("ab", momentum=0.1, batch_size="all", micro_batch_size=1)
    assert shown.largest_share_of_statistics == pytest.approx(0.1 / 0.19)
