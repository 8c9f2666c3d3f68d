"""A server that wants more of a day than the site's policy allows."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from client.trainer import Trainer
from common import wire
from common.config import StudyConfig
from tests.attacks.conftest import Hospital, ask, enrolled, refusal, round_plan, study

MOST = 3
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
Asked = Callable[[Trainer, list[datetime]], Iterator[wire.Answer]]


def scored(trainer: Trainer, chosen: StudyConfig, plan_ids: str) -> Iterator[wire.Answer]:
    """A round of scores for each name of a plan, with the first weights."""
    weights = enrolled(trainer, chosen)
    for number, plan_id in enumerate(plan_ids, start=1):
        yield ask(trainer, round_plan(chosen, weights, number=number, train=False, plan_id=plan_id))


def under_other_names_of_plans(trainer: Trainer, clock: list[datetime]) -> Iterator[wire.Answer]:
    yield from scored(trainer, study(rounds=9), "abcdefg")


def under_two_names_of_plans_in_turn(trainer: Trainer, clock: list[datetime]) -> Iterator[wire.Answer]:
    """It counted what plans were called, and so two of any number."""
    yield from scored(trainer, study(rounds=9), "abababab")


def in_another_study(trainer: Trainer, clock: list[datetime]) -> Iterator[wire.Answer]:
    yield from scored(trainer, study(rounds=9), "ab")
    yield from scored(trainer, study(rounds=9, name="another"), "cdef")


def after_a_restart(trainer: Trainer, clock: list[datetime]) -> Iterator[wire.Answer]:
    chosen = study(rounds=9)
    weights = enrolled(trainer, chosen)
    for number in range(1, 8):
        restarted = Trainer(trainer._site, lambda: clock[0])
        yield ask(restarted, round_plan(chosen, weights, number=number, train=False, plan_id=f"p{number}"))


def with_the_clock_set_back(trainer: Trainer, clock: list[datetime]) -> Iterator[wire.Answer]:
    for answer in scored(trainer, study(rounds=9), "abcdefg"):
        yield answer
        clock[0] -= timedelta(hours=10)


@pytest.mark.parametrize(
    "way",
    [
        under_other_names_of_plans,
        under_two_names_of_plans_in_turn,
        in_another_study,
        after_a_restart,
        with_the_clock_set_back,
    ],
)
def test_no_way_of_asking_gets_more_than_the_days_scores(hospital: Hospital, way: Asked) -> None:
    clock = [NOON]
    made = hospital(max_evaluations_per_day=MOST, timezone="UTC")
    answers = list(way(Trainer(made._site, lambda: clock[0]), clock))
    assert len(answers) > MOST
    # The last answer is kept under its plan's name, and may come again.
    scored = {(answer.plan_id, answer.round) for answer in answers if isinstance(answer, wire.RoundAnswer)}
    assert len(scored) == MOST
    assert "max_evaluations_per_day: this site scores no more today" in refusal(answers[-1])


def test_the_same_question_again_costs_nothing(hospital: Hospital) -> None:
    """So a gateway that lost its line, and a server that was killed, get their answer."""
    clock = [NOON]
    trainer = Trainer(hospital(max_evaluations_per_day=1, timezone="UTC")._site, lambda: clock[0])
    chosen = study(rounds=9)
    weights = enrolled(trainer, chosen)
    plan = round_plan(chosen, weights, train=False)
    assert isinstance(ask(trainer, plan), wire.RoundAnswer)
    assert isinstance(ask(trainer, plan), wire.RoundAnswer)


def test_rounds_that_diverge_cost_the_day_its_minutes(hospital: Hospital) -> None:
    """A failure takes as long as an answer, and can be had again and again."""
    clock = [NOON]
    trainer = Trainer(hospital(max_device_minutes_per_day=1e-6, timezone="UTC")._site, lambda: clock[0])
    plain = {"kind": "sgd", "lr": 1e30, "momentum": 0.0, "weight_decay": 0.0}
    chosen = study(local={"epochs": 1, "batch_size": 8, "augmentation": "none", "optimizer": plain})
    weights = enrolled(trainer, chosen)
    first = ask(trainer, round_plan(chosen, weights))
    assert isinstance(first, wire.Failure)
    assert first.error != "policy"
    assert "max_device_minutes_per_day" in refusal(ask(trainer, round_plan(chosen, weights, plan_id="again")))
