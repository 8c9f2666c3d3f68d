"""Inversion of a round's change into images: exact for one image, and of no use for a batch of the allowed size."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.trainer import Trainer
from common import wire
from tests.attacks.conftest import Hospital, ask, enrolled, round_plan, study

SIZE, PATCH = 32, 16
Images = npt.NDArray[np.float64]
Delta = Mapping[str, npt.NDArray[Any]]


def inverted(trainer: Trainer, batch_size: int) -> Images:
    """One image, by the patch embedding of a ViT: dW = G' X, and G is the position embedding's gradient.

    APRIL, Lu et al. 2022, arXiv:2112.14087. One step of plain SGD, so the change is the gradient.
    """
    local = {
        "steps": 1, "batch_size": batch_size, "augmentation": "none", "precision": "float64",
        "optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
    }  # fmt: skip
    chosen = study(rounds=1, local=local)
    answer = ask(trainer, round_plan(chosen, enrolled(trainer, chosen)))
    assert isinstance(answer, wire.RoundAnswer), answer
    return inverted_from(answer.delta)


def inverted_from(delta: Delta) -> Images:
    """The image in the change of a ViT's weights by one step on it."""
    change_DX = -delta["patch_embed.proj.weight"].reshape(64, -1)
    slopes_PD = -delta["pos_embed"][0, -((SIZE // PATCH) ** 2) :]
    patches = np.linalg.lstsq(slopes_PD.T, change_DX, rcond=None)[0]
    side = SIZE // PATCH
    return patches.reshape(side, side, 3, PATCH, PATCH).transpose(2, 0, 3, 1, 4).reshape(3, SIZE, SIZE)


def training_images(trainer: Trainer) -> Images:
    """As the trainer sees them, normalised."""
    assert trainer._setup is not None
    images = trainer._setup.store.images("train")
    return images.batch(torch.arange(len(images.labels_N)), None).double().numpy()


def likeness(guess: Images, images: Images) -> list[float]:
    """Correlation of a guess with each image."""
    return [abs(float(np.corrcoef(guess.ravel(), image.ravel())[0, 1])) for image in images]


def test_without_the_rules_one_image_is_recovered_exactly(hospital: Hospital) -> None:
    """The attack works, so that its failure below means something."""
    trainer = hospital(min_batch=None, min_cell=None, max_patient_share=None)
    guess = inverted(trainer, 1)
    assert max(likeness(guess, training_images(trainer))) > 0.999


def test_a_batch_of_the_smallest_size_gives_a_mixture_that_is_no_patients_image(hospital: Hospital) -> None:
    trainer = hospital()
    rules: Any = trainer._site.policy
    guess = inverted(trainer, rules.min_batch)
    assert max(likeness(guess, training_images(trainer))) < 0.3
