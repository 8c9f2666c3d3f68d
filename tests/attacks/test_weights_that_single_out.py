"""A server that sends weights under which a round is of one image: all others are classified without doubt.

The slope of the loss is then 0 for every image but one (a softmax that is sure), and the change of the weights is that
image's gradient, whatever the batch. A ViT's patch embedding gives the image by least squares (APRIL, Lu et al. 2022,
arXiv:2112.14087).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.model import parameters
from client.trainer import Trainer
from common import wire
from tests.attacks.conftest import Hospital, ask, enrolled, refusal, round_plan, study
from tests.attacks.test_inversion import inverted_from, likeness, training_images

SURE = 5.0
"""Each logit of an image that is not wanted: its slope is e**-10, beside 1."""
ONE_STEP = {
    "steps": 1, "batch_size": "all", "augmentation": "none", "precision": "float64",
    "optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
}  # fmt: skip


def singling_out(
    trainer: Trainer, weights: dict[str, npt.NDArray[Any]], wanted: int
) -> dict[str, npt.NDArray[Any]]:
    """Weights whose classifier is right about every training image but `wanted`; what an attacker finds by halving."""
    assert trainer._setup is not None
    setup = trainer._setup
    images = setup.store.images("train")
    parameters.load_shared(setup.model, setup.parts, weights)
    with torch.no_grad():
        batch = images.batch(torch.arange(len(images.labels_N)), None).double()
        model: Any = setup.model
        rows = model.forward_head(model.forward_features(batch), pre_logits=True).numpy()
    labels = images.labels_N.numpy()
    signs = np.where(labels == 1, SURE, -SURE)
    signs[wanted] *= -1
    with_bias = np.hstack([rows, np.ones((len(rows), 1))])
    solution = np.linalg.lstsq(with_bias, signs, rcond=None)[0]
    head = np.stack([-solution, solution])
    return weights | {"head.weight": head[:, :-1], "head.bias": head[:, -1]}


def answered(trainer: Trainer, wanted: int = 1) -> wire.Answer:
    chosen = study(local=ONE_STEP)
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, round_plan(chosen, weights)), wire.RoundAnswer)
    made_up = singling_out(trainer, weights, wanted)
    return ask(trainer, round_plan(chosen, made_up, number=2, plan_id="r2"))


def test_without_the_rule_a_batch_of_all_images_gives_one_of_them_exactly(hospital: Hospital) -> None:
    trainer = hospital(smooth=True, max_patient_share=None)
    answer = answered(trainer)
    assert isinstance(answer, wire.RoundAnswer), answer
    alike = likeness(inverted_from(answer.delta), training_images(trainer))
    assert alike[1] > 0.99


def test_a_round_that_is_one_patients_is_not_answered(hospital: Hospital) -> None:
    trainer = hospital(smooth=True)
    assert (
        refusal(answered(trainer))
        == "max_patient_share: the change of the weights would be of too few patients"
    )


def test_rounds_that_are_left_out_do_not_widen_the_limit(hospital: Hospital) -> None:
    """From round 1 to round 1000 the limit was 999 times as wide."""
    trainer, chosen = hospital(), study(rounds=1000)
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, round_plan(chosen, weights)), wire.RoundAnswer)
    made_up = {name: array * np.float32(-100) for name, array in weights.items()}
    for asked in (trainer, Trainer(trainer._site)):
        answer = ask(asked, round_plan(chosen, made_up, number=1000, plan_id="r1000"))
        assert refusal(answer) == "max_weight_change: the weights have changed too much since the last round"
