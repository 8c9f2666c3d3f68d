"""A server that asks for rounds of training from which a single image could be taken."""

from typing import Any

import numpy as np
import pytest

from client.trainer import Trainer
from common import wire
from tests.attacks.conftest import Hospital, approve, ask, enrol, enrolled, refusal, round_plan, study

PLAIN = {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}


def trained(trainer: Trainer, local: dict[str, Any], **changes: Any) -> wire.Answer:
    chosen = study(local={"augmentation": "none", **local}, **changes)
    return ask(trainer, round_plan(chosen, enrolled(trainer, chosen)))


def test_a_batch_of_one_under_a_schedule_that_vanishes_is_refused(hospital: Hospital) -> None:
    """APRIL (Lu et al. 2022): the patch embedding of a ViT gives the image by least squares, to 3e-12."""
    answer = trained(
        hospital(),
        {
            "epochs": 1, "batch_size": 1, "precision": "float64", "optimizer": PLAIN,
            "schedule": {"kind": "step", "milestones": [1 / 24], "gamma": 1e-30},
        },
        rounds=1,
    )  # fmt: skip
    assert "min_batch: an optimizer step is on too few patients" in refusal(answer)


@pytest.mark.parametrize(
    "local",
    [
        {"epochs": 1, "batch_size": 1},
        {"epochs": 1, "batch_size": 7},
        {"steps": 5, "batch_size": 2},
        {"epochs": 3, "batch_size": 4, "sampling": "weighted"},
        {"steps": 24, "batch_size": 1, "optimizer": {"kind": "adam", "lr": 1e-3}},
    ],
)
def test_small_batches_are_refused_however_they_are_asked_for(
    hospital: Hospital, local: dict[str, Any]
) -> None:
    assert "min_batch: " in refusal(trained(hospital(), local))


def test_a_last_batch_of_few_images_may_not_weigh_too_much(hospital: Hospital) -> None:
    """24 training images: one step on 22, and one as long on the last two, which have half of the round."""
    answer = trained(hospital(), {"epochs": 1, "batch_size": 22, "optimizer": PLAIN})
    assert "min_batch: one patient weighs too much in the round" in refusal(answer)


def test_an_honest_round_is_answered(hospital: Hospital) -> None:
    answer = trained(hospital(), {"epochs": 1, "batch_size": 8})
    assert isinstance(answer, wire.RoundAnswer)
    assert answer.num_examples == 24


def test_the_first_weights_are_those_that_the_site_builds_itself(hospital: Hospital) -> None:
    """Weights that single out a sample (Fowl et al. 2022, arXiv:2110.13057) cannot be the first ones."""
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    weights["head.bias"] = weights["head.bias"] + np.float32(0.01)
    assert "own_first_weights: " in refusal(ask(trainer, round_plan(chosen, weights)))


def test_weights_that_jump_between_two_rounds_are_refused(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, round_plan(chosen, weights)), wire.RoundAnswer)
    made_up = {name: array * np.float32(-100) for name, array in weights.items()}
    answer = ask(trainer, round_plan(chosen, made_up, number=2, plan_id="r2"))
    assert "max_weight_change: the weights have changed too much" in refusal(answer)


def test_one_round_is_not_asked_for_twice_with_other_weights(hospital: Hospital) -> None:
    """Two answers that differ in the weights alone would be two equations about the same images."""
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    first = ask(trainer, round_plan(chosen, weights))
    second = {name: array * np.float32(1.001) for name, array in weights.items()}
    for plan_id, round_ in (("x", 1), ("y", 2)):
        answer = ask(trainer, round_plan(chosen, second, number=round_, plan_id=plan_id))
        if round_ == 1:
            assert "contract: round 1 was answered before, to another question" in refusal(answer)
    again = ask(trainer, round_plan(chosen, weights, plan_id="again"))
    assert isinstance(first, wire.RoundAnswer)
    assert isinstance(again, wire.RoundAnswer)
    assert all(np.array_equal(first.delta[name], again.delta[name]) for name in first.delta)


def test_a_study_cannot_begin_again_without_another_approval(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    for number in (1, 2):
        plan = round_plan(chosen, weights, number=number, plan_id=f"r{number}")
        assert isinstance(ask(trainer, plan), wire.RoundAnswer)
    question = wire.ApprovalPlan(plan_id="q", site="north", study=chosen, first_round=3)
    goes_on = ask(trainer, question)
    assert isinstance(goes_on, wire.ApprovalAnswer)
    assert goes_on.decision == "yes"
    for plan_id in ("e3", "e4"):
        answer = enrol(trainer, chosen, plan_id=plan_id)
        assert isinstance(answer, wire.ApprovalAnswer)
        assert answer.decision == "undecided"
    assert "ask: study skin" in refusal(ask(trainer, round_plan(chosen, weights, plan_id="r9")))
    approve(trainer, chosen)
    assert isinstance(enrol(trainer, chosen, plan_id="e5"), wire.Enrolment)


def test_a_study_of_few_sites_is_refused(hospital: Hospital) -> None:
    trainer = hospital()
    alone = study(sites={"train": ["north", "south"], "required": 1})
    assert "min_cohort: the study goes on with 1 training site" in refusal(enrol(trainer, alone))


def test_a_changed_study_has_to_be_approved_again(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study()
    approve(trainer, chosen)
    other = study(rounds=500)
    answer = enrol(trainer, other)
    assert isinstance(answer, wire.ApprovalAnswer)
    assert answer.decision == "undecided"
