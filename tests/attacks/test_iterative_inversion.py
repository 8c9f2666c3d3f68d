"""Iterative inversion, with priors, of what a CNN's step leaves behind: one image, and a batch of the allowed size.

`gradient_inversion.py` says what the attacker knows. Likeness is correlation; the other patients' images, which were
not in the batch, say how much of it is chance.
"""

from typing import Any

import pytest
import torch

from client.model import build, parameters
from client.trainer import Trainer
from client.training.batches import training_batches
from common import seeds, wire
from tests.attacks.conftest import Hospital, ask, enrolled, round_plan, study
from tests.attacks.gradient_inversion import Seen, best_match, inverted, likeness
from tests.attacks.test_inversion import training_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SIZE, STEPS = 32, 250


def found(trainer: Trainer, encoder: str, batch_size: int) -> tuple[float, float]:
    """Likeness of the guesses to the batch's images, and to as many of other patients, each paired in the best way."""
    local = {
        "steps": 1, "batch_size": batch_size, "augmentation": "none", "precision": "float64", "loss": "cross_entropy",
        "optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
    }  # fmt: skip
    model: dict[str, Any] = {"encoder": encoder, "image_size": SIZE, "head_start": "library"}
    chosen = study(model=model, rounds=1, local=local)
    weights = enrolled(trainer, chosen)
    answer = ask(trainer, round_plan(chosen, weights))
    assert isinstance(answer, wire.RoundAnswer), answer
    network = build.of_study(chosen, None).model
    parts = parameters.partition(network, chosen.model)
    parameters.load_shared(network, parts, weights)
    names = {name for name, _ in network.named_parameters()}
    share = parameters.statistics_momentum(network, parts) or 1.0
    change = {name: torch.tensor(delta) for name, delta in answer.delta.items()}
    seen = Seen(
        {name: -moved for name, moved in change.items() if name in names},
        {
            name: torch.tensor(weights[name]) + moved / share
            for name, moved in change.items()
            if name not in names
        },
    )
    assert trainer._setup is not None
    labels = trainer._setup.store.images("train").labels_N
    (batch,) = training_batches(labels, chosen.local, seeds.derive(0, "north", 1))
    guess = inverted(network, seen, labels[batch], SIZE, steps=STEPS, seed=0)
    alike = likeness(guess, torch.from_numpy(training_images(trainer)))
    others = [place for place in range(len(labels)) if place not in batch.tolist()][:batch_size]
    own, chance = best_match(alike[:, batch]), best_match(alike[:, others])
    print(f"{encoder}, batch of {batch_size}: {own:.3f} own, {chance:.3f} others'")
    return own, chance


def test_without_the_rules_a_batch_of_one_is_like_its_image(hospital: Hospital) -> None:
    """The attack works, so that its failure below means something."""
    own, chance = found(
        hospital(smooth=True, min_batch=None, min_cell=None, max_patient_share=None), "test_convnext", 1
    )
    assert own > 0.4
    assert own > 2 * chance


def test_a_batch_of_the_smallest_size_under_batch_normalisation_is_no_more_like_its_images_than_like_others(
    hospital: Hospital,
) -> None:
    own, chance = found(hospital(smooth=True), "test_resnet", 8)
    assert own - chance < 0.1


def test_known_weakness_a_small_network_without_batch_normalisation_tells_something_of_a_batch(
    hospital: Hospital,
) -> None:
    """Less than half of what it tells of one image. Only noise or masks make this nothing."""
    own, chance = found(hospital(smooth=True), "test_convnext", 8)
    assert own < 0.4
    assert chance < 0.2
