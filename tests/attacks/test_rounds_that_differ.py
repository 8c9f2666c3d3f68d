"""A server that takes images from what tells two steps, or two rounds, apart."""

from typing import Any

import numpy as np
import pytest

from client.trainer import Trainer
from client.training.batches import training_batches
from common import seeds, wire
from common.config import StudyConfig
from tests.attacks.conftest import Hospital, ask, enrolled, refusal, round_plan, study
from tests.attacks.test_inversion import Delta, inverted_from, likeness, training_images

PLAIN = {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}


def asked(trainer: Trainer, local: dict[str, Any], **changes: Any) -> wire.Answer:
    chosen = study(local={"augmentation": "none", "precision": "float64", **local}, **changes)
    return ask(trainer, round_plan(chosen, enrolled(trainer, chosen)))


# --- steps that undo those before ------------------------------------------------------------------

UNDOING: dict[str, dict[str, Any]] = {
    "weight decay": {"local": {"epochs": 1, "batch_size": 8, "optimizer": {**PLAIN, "weight_decay": 1.0}}},
    "FedProx": {
        "local": {"epochs": 1, "batch_size": 8, "optimizer": PLAIN},
        "algorithm": {"kind": "fedprox", "mu": 1.0},
    },
}
"""26 training images in batches of 8, 8, 8 and 2. Learning rate times pull is 1, so that each step undoes those
before, and the change of the weights is the gradient of the last two images."""


def test_without_the_rule_the_change_is_of_the_last_batch_alone(hospital: Hospital) -> None:
    trainer = hospital(per_class=26, min_batch=None, min_cell=None, max_patient_share=None)
    answer = asked(trainer, **UNDOING["FedProx"])
    assert isinstance(answer, wire.RoundAnswer), answer
    assert trainer._setup is not None
    study, labels = trainer._setup.study, trainer._setup.store.images("train").labels_N
    last = training_batches(labels, study.local, seeds.derive(0, "north", 1))[-1].numpy()
    assert len(last) == 2
    alike = np.array(likeness(inverted_from(answer.delta), training_images(trainer)))
    assert alike[last].max() > 2 * np.delete(alike, last).max()


@pytest.mark.parametrize("how", UNDOING)
def test_a_round_whose_steps_undo_each_other_is_refused(hospital: Hospital, how: str) -> None:
    answer = asked(hospital(per_class=26), **UNDOING[how])
    assert refusal(answer) == "min_batch: one patient weighs too much in the round"


def test_learning_rates_whose_sum_is_infinite_hide_no_small_batch(hospital: Hospital) -> None:
    """10 images in batches of 8 and 2, which are half of the round each; clipping makes the steps finite."""
    optimizer = {**PLAIN, "lr": 1.7e308}
    answer = asked(
        hospital(per_class=10),
        {"epochs": 1, "batch_size": 8, "optimizer": optimizer, "clip_grad_norm": 1e-308},
    )
    assert refusal(answer) == "min_batch: one patient weighs too much in the round"


# --- two rounds ------------------------------------------------------------------------------------


def test_two_rounds_do_not_differ_in_a_few_patients(hospital: Hospital) -> None:
    """Each on all but two of 24 patients, on the same weights: their difference would be of four."""
    answer = asked(hospital(), {"steps": 1, "batch_size": 22, "optimizer": PLAIN})
    assert "min_batch: the round leaves out a few patients" in refusal(answer)


def gradients(trainer: Trainer, chosen: StudyConfig) -> tuple[np.ndarray, list[Delta]]:
    """By round, which patients it was on and the change of the weights; all on the same weights."""
    weights = enrolled(trainer, chosen)
    assert trainer._setup is not None
    labels = trainer._setup.store.images("train").labels_N
    of_round, changes = np.zeros((chosen.rounds, len(labels))), []
    for number in range(1, chosen.rounds + 1):
        answer = ask(trainer, round_plan(chosen, weights, number=number, plan_id=f"r{number}"))
        assert isinstance(answer, wire.RoundAnswer), answer
        (batch,) = training_batches(labels, chosen.local, seeds.derive(chosen.seed, "north", number))
        of_round[number - 1, batch] = 1 / len(batch)
        changes.append(answer.delta)
    return of_round, changes


def test_known_weakness_as_many_rounds_as_patients_on_the_same_weights_give_each_patients_gradient(
    hospital: Hospital,
) -> None:
    """Whose turn it is follows from the seed, so R rounds are R equations. Only noise or masks close this."""
    trainer = hospital(per_class=16)
    local = {"steps": 1, "batch_size": 8, "augmentation": "none", "precision": "float64", "optimizer": PLAIN}
    of_round, changes = gradients(trainer, study(rounds=20, local=local))
    solved = {
        name: np.linalg.lstsq(of_round, np.stack([change[name].ravel() for change in changes]), rcond=None)[0]
        for name in ("patch_embed.proj.weight", "pos_embed")
    }
    first = {name: rows[0].reshape(changes[0][name].shape) for name, rows in solved.items()}
    assert likeness(inverted_from(first), training_images(trainer))[0] > 0.999


def test_fewer_rounds_than_patients_leave_mixtures(hospital: Hospital) -> None:
    trainer = hospital(per_class=16)
    local = {"steps": 1, "batch_size": 8, "augmentation": "none", "precision": "float64", "optimizer": PLAIN}
    of_round, changes = gradients(trainer, study(rounds=6, local=local))
    best = 0.0
    for patient in range(of_round.shape[1]):
        # the combination of rounds that is nearest to this patient alone
        parts = np.linalg.lstsq(of_round.T, np.eye(of_round.shape[1])[patient], rcond=None)[0]
        if not parts.any():
            continue  # in none of these rounds
        mixed = {
            name: sum(part * change[name] for part, change in zip(parts, changes, strict=True))
            for name in changes[0]
        }
        best = max(best, likeness(inverted_from(mixed), training_images(trainer))[patient])
    assert best < 0.6
