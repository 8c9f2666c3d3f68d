"""The attacks that the contract stops, with the contract switched off. They succeed, so a refusal means something."""

import numpy as np
import pytest

from client.governance.contract import Contract
from client.trainer import Trainer
from common import wire
from common.heads import HeadForm, under
from common.wire import head_steps
from tests.attacks.conftest import Hospital, ask, enrolled, round_plan, study
from tests.attacks.test_beyond_the_study import HEADS, head_plan, view


@pytest.fixture(autouse=True)
def without_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contract, "check", lambda *_: None)


def test_a_round_beyond_the_studys_is_answered(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, round_plan(chosen, weights, number=7)), wire.RoundAnswer)


def test_halving_finds_an_images_probability_in_as_many_questions_as_it_likes(hospital: Hospital) -> None:
    """An evaluation as an oracle: a bias that is moved until one image changes sides, to 2**-20 of where it began."""
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    assert _smallest_margin(trainer, chosen, weights, 20) < 1e-4


def _smallest_margin(trainer: Trainer, chosen, weights, questions: int) -> float:  # type: ignore[no-untyped-def]
    """Width of the interval that is left around the bias at which the first image changes sides."""
    low, high = -50.0, 50.0
    for number in range(questions):
        middle = (low + high) / 2
        bias = weights["head.bias"] + np.array([0, middle], weights["head.bias"].dtype)
        plan = round_plan(chosen, {**weights, "head.bias": bias}, number=2, train=False, plan_id=f"q{number}")
        answer = ask(trainer, plan.model_copy(update={"score": ("test",)}))
        if not isinstance(answer, wire.RoundAnswer):
            break
        none = answer.scores["test"].confusion_CC[:, 1].sum() == 0
        low, high = (middle, high) if none else (low, middle)
    return high - low


def test_sums_that_no_head_needs_and_scores_of_a_made_up_head_are_answered(hospital: Hospital) -> None:
    trainer, chosen = hospital(heads=["*"]), study(**HEADS)
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, head_plan(weights, view("other", squares=True))), wire.HeadAnswer)
    made_up = {
        "shift": np.zeros(64), "scale": np.ones(64), "weights": np.ones((64, 2)), "bias": np.zeros(2),
    }  # fmt: skip
    step = head_steps.ScoreStep(heads=(HeadForm(title="h0", form="linear"),))
    answer = ask(trainer, head_plan(weights, step, under("head/h0", made_up), plan_id="h0"))
    assert isinstance(answer, wire.HeadAnswer), answer
    assert [result.title for result in answer.results if result.title.startswith("h")] == ["h0"]


class TestWithIt:
    """The same, as it is."""

    @pytest.fixture(autouse=True)
    def without_the_contract(self) -> None:
        """Left as it is."""

    def test_halving_gets_one_answer(self, hospital: Hospital) -> None:
        trainer, chosen = hospital(), study()
        weights = enrolled(trainer, chosen)
        assert _smallest_margin(trainer, chosen, weights, 20) == 50.0
