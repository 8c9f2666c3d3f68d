"""Settings and messages that came after the first attacks, tried as ways to a single image under a kit's policy."""

from typing import Any

import numpy as np
import pytest

from client.trainer import Trainer
from common import wire
from common.heads import under
from tests.attacks.conftest import Hospital, ask, enrolled, refusal, round_plan, study

PLAIN = {"kind": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
SCAFFOLD = {
    "algorithm": {"kind": "scaffold"},
    "local": {"steps": 3, "batch_size": 8, "augmentation": "none", "optimizer": PLAIN},
}
BY_STUDY = {
    "local": {"epochs": 1, "batch_size": 8, "augmentation": "none", "class_weights": "study"},
}


def with_control(chosen: Any, weights: dict[str, np.ndarray], scale: float) -> wire.RoundPlan:
    """Round 2 with a control variate of the server's choice, `scale` in every entry."""
    control = {name: np.full_like(array, scale) for name, array in weights.items()}
    plan = round_plan(chosen, weights | under(wire.CONTROL, control), number=2, plan_id="r2")
    return plan.model_copy(update={"control": 1})


def test_a_control_variate_cannot_carry_the_weights_to_a_place_of_the_servers_choice(
    hospital: Hospital,
) -> None:
    """In each step it moves the weights as far as the server likes, so the last step would be at made-up weights."""
    trainer, chosen = hospital(), study(**SCAFFOLD)
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, round_plan(chosen, weights)), wire.RoundAnswer)
    answer = ask(trainer, with_control(chosen, weights, 1e4))
    assert "max_weight_change: the weights have changed too much" in refusal(answer)


def test_another_control_variate_for_a_round_is_another_question(hospital: Hospital) -> None:
    """Two answers with known corrections would be two equations about the same images."""
    trainer, chosen = hospital(), study(**SCAFFOLD)
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, round_plan(chosen, weights)), wire.RoundAnswer)
    assert isinstance(ask(trainer, with_control(chosen, weights, 1e-4)), wire.RoundAnswer)
    answer = ask(trainer, with_control(chosen, weights, 2e-4).model_copy(update={"plan_id": "r3"}))
    assert "contract: round 2 was answered before, to another question" in refusal(answer)


def test_a_control_variate_in_a_study_without_any_is_refused(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, round_plan(chosen, weights)), wire.RoundAnswer)
    answer = ask(trainer, with_control(chosen, weights, 1e-4))
    assert "contract: a control variate comes along, and the study has none" in refusal(answer)


def test_a_part_of_a_pass_is_counted_for_the_images_that_it_has(hospital: Hospital) -> None:
    """The smallest part is a whole step: of eight patients, or of too few."""
    for batch, steps in ((8, 1), (4, None)):
        local = {"epochs": 0.01, "batch_size": batch, "augmentation": "none", "optimizer": PLAIN}
        trainer, chosen = hospital(), study(name=f"parts-of-{batch}", local=local)
        answer = ask(trainer, round_plan(chosen, enrolled(trainer, chosen)))
        if steps is None:
            assert "min_batch: an optimizer step is on too few patients" in refusal(answer)
        else:
            assert isinstance(answer, wire.RoundAnswer)
            assert answer.num_steps == steps


@pytest.mark.parametrize("counts", [(10**8, 1), (1, 10**8)])
def test_made_up_counts_weigh_a_class_and_no_patient(hospital: Hospital, counts: tuple[int, int]) -> None:
    """With counts like these a step is of the images of one class, and there are fewer than eight of it in a batch."""
    trainer, chosen = hospital(), study(**BY_STUDY)
    plan = round_plan(chosen, enrolled(trainer, chosen)).model_copy(update={"class_counts": counts})
    assert "min_batch: " in refusal(ask(trainer, plan))


def test_honest_counts_are_answered(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study(**BY_STUDY)
    plan = round_plan(chosen, enrolled(trainer, chosen)).model_copy(update={"class_counts": (24, 24)})
    assert isinstance(ask(trainer, plan), wire.RoundAnswer)


@pytest.mark.parametrize("kind", ["local_head", "ditto"])
def test_models_of_the_site_never_leave(hospital: Hospital, kind: str) -> None:
    trainer, chosen = hospital(), study(personalisation={"kind": kind, "alone": True})
    weights = enrolled(trainer, chosen)
    answer = ask(trainer, round_plan(chosen, weights))
    assert isinstance(answer, wire.RoundAnswer)
    assert answer.delta.keys() == weights.keys()
    assert not answer.own  # scores of them leave once, with the test


def test_one_entry_of_a_change_says_no_more_than_the_change(hospital: Hospital) -> None:
    """The largest entries of a change are of the same batches, so the same rules meet the round."""
    small = {"epochs": 1, "batch_size": 2, "augmentation": "none"}
    trainer, chosen = hospital(), study(local=small, transport={"up": "int8", "top_k": 1e-6})
    answer = ask(trainer, round_plan(chosen, enrolled(trainer, chosen)))
    assert "min_batch: " in refusal(answer)


def test_the_rest_of_a_rounded_change_is_not_asked_for_twice(hospital: Hospital) -> None:
    """What rounding leaves out comes with the next round; another plan for the round would get it on its own."""
    trainer, chosen = hospital(), study(transport={"up": "int8"})
    weights = enrolled(trainer, chosen)
    first = ask(trainer, round_plan(chosen, weights))
    again = ask(trainer, round_plan(chosen, weights, plan_id="again"))
    assert isinstance(first, wire.RoundAnswer)
    assert isinstance(again, wire.RoundAnswer)
    assert all(np.array_equal(first.delta[name], again.delta[name]) for name in first.delta)


def after_the_test(trainer: Trainer, chosen: Any, weights: dict[str, np.ndarray], number: int) -> wire.Answer:
    plan = round_plan(chosen, weights, number=number, train=False, plan_id=f"t{number}")
    return ask(trainer, plan.model_copy(update={"score": ("test",)}))


def test_test_images_are_no_second_oracle(hospital: Hospital) -> None:
    """Scores of other weights on the same images would tell images apart by bisection."""
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, round_plan(chosen, weights)), wire.RoundAnswer)
    assert isinstance(after_the_test(trainer, chosen, weights, 2), wire.RoundAnswer)
    other = {name: array * np.float32(1.001) for name, array in weights.items()}
    assert "contract: the test images were scored before" in refusal(
        after_the_test(trainer, chosen, other, 3)
    )
    plan = round_plan(chosen, weights, number=3, plan_id="r3")
    assert "after the test images were scored" in refusal(ask(trainer, plan))
