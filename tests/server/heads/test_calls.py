"""Messages of one head step: which answers are admitted, and which reason a site without one gets."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from common import wire
from common.config import StudyConfig
from common.weights import Arrays, TensorSpec
from common.wire import head_steps
from server.heads.calls import HeadCalls
from server.rounds.sites import Deadline, Reply
from server.state import Cohort, RoundState

Answer = Callable[[wire.HeadPlan], wire.Answer]

STATISTICS = head_steps.StatisticsStep(
    views=(head_steps.ViewRequest(name="raw", class_weights=(1.0, 1.0, 1.0)),)
)
VOTE = head_steps.CoefficientsStep(votes=("vote",))
SCORE = head_steps.ScoreStep(heads=())


@pytest.fixture(autouse=True)
def _propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


@dataclass
class Scripted:
    """Sites that give the answers of a script, one list of answers a step; an empty list is silence."""

    script: dict[str, list[list[Answer]]]
    late: bool = False
    plans: list[dict[str, wire.HeadPlan]] = field(default_factory=list)

    def online(self) -> set[str]:
        return set(self.script)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        heads = {site: plan for site, plan in plans.items() if isinstance(plan, wire.HeadPlan)}
        self.plans.append(heads)
        for site, steps in self.script.items():
            for answer in steps[len(self.plans) - 1]:
                yield Reply(site, answer(heads.get(site, next(iter(heads.values())))), 0.1, late=self.late)


def sums(**changes: object) -> Answer:
    """An answer of two features; `changes` replace its fields."""

    def answer(plan: wire.HeadPlan) -> wire.Answer:
        fields: dict[str, object] = {
            "plan_id": plan.plan_id,
            "site": plan.site,
            "round": plan.round,
            "step": plan.step.kind,
            "train_counts": (2, 1, 1),
            "seconds": 0.1,
            "arrays": {"sums": np.ones((3, 2))},
        }
        return wire.HeadAnswer.model_validate(fields | changes)

    return answer


def failure(advice: str) -> Answer:
    return lambda plan: wire.Failure(
        plan_id=plan.plan_id, site=plan.site, error="memory", case="1a2b", advice=advice
    )


def arrays(**named: object) -> dict[str, object]:
    return {"arrays": {name: np.asarray(values) for name, values in named.items()}}


def calls_to(study: StudyConfig, sites: Scripted) -> HeadCalls:
    layout = {"w": TensorSpec(shape=(2,), dtype="float32")}
    enrolments = {
        name: wire.Enrolment(
            plan_id="e", site=name, layout=layout, weights_digest="a", frozen_digest="b", preprocessing={},
            train_counts=(2, 1, 1), validation_counts=(1, 1, 1), test_counts=(1, 1, 1), device="cpu", weights={},
        )
        for name in ("north", "south")
    }  # fmt: skip
    weights = {"w": np.zeros(2, np.float32)}
    return HeadCalls(study, sites, Cohort(enrolments, weights), RoundState(4, weights, layout, {}))


def ask(calls: HeadCalls, step: head_steps.HeadStep, sent: Arrays | None = None) -> list[str]:
    """Sites whose answer was admitted."""
    admit = calls.admit_training({"sums": (3, None)})
    return list(calls.ask(("north", "south"), step, sent or {}, admit))


# --- reasons -------------------------------------------------------------------------------------


def test_a_site_that_is_silent_in_a_later_step_gets_the_reason_of_that_step(make_study, caplog):
    sites = Scripted({"north": [[sums()]] * 2, "south": [[failure("no memory")], []]})
    calls = calls_to(make_study(deadlines={"round_s": 60}), sites)
    ask(calls, STATISTICS)
    assert calls.problems == {"south": "statistics: no memory (memory, case 1a2b in its log)"}
    ask(calls, SCORE)
    assert calls.problems == {"south": "score: no answer within 60 s"}
    assert "south: no part in score: no answer within 60 s" in caplog.text


def test_every_step_that_a_site_misses_is_logged(make_study, caplog):
    sites = Scripted({"north": [[sums()]] * 3, "south": [[], [], []]})
    calls = calls_to(make_study(deadlines={"round_s": 60}), sites)
    for step in (STATISTICS, VOTE, SCORE):
        ask(calls, step)
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [
        " no part in statistics",
        " no part in coefficients",
        " no part in score",
    ]


def test_a_missed_step_stays_on_record_when_a_later_one_is_answered(make_study):
    sites = Scripted({"north": [[sums()]] * 2, "south": [[failure("no memory")], [sums()]]})
    calls = calls_to(make_study(), sites)
    assert ask(calls, STATISTICS) == ["north"]
    assert ask(calls, SCORE) == ["north", "south"]
    assert calls.problems == {"south": "statistics: no memory (memory, case 1a2b in its log)"}


# --- admission -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (sums(train_counts=(2, 1, 2)), "its sums are over other training images than it enrolled with"),
        (sums(arrays={}), "sums is missing, expected [3, None]"),
        (sums(**arrays(sums=np.ones((2, 2)))), "sums is of shape [2, 2], expected [3, None]"),
        (sums(**arrays(sums=np.ones(3))), "sums is of shape [3], expected [3, None]"),
        (
            sums(**arrays(sums=[[1, np.nan], [1, 1], [1, 1]])),
            "sums has entries that are not finite numbers",
        ),
        (sums(**arrays(sums=np.ones((3, 2), np.int64))), "sums has entries that are not finite numbers"),
        (sums(step="score"), "its answer is to another step"),
        (sums(plan_id="older"), "its answer is to another step"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_and_named(make_study, answer, reason):
    calls = calls_to(make_study(), Scripted({"north": [[sums()]], "south": [[answer]]}))
    assert ask(calls, STATISTICS) == ["north"]
    assert calls.problems == {"south": f"statistics: {reason}"}


def test_the_first_of_two_answers_counts(make_study):
    second = sums(**arrays(sums=np.full((3, 2), 9.0)))
    calls = calls_to(make_study(), Scripted({"north": [[sums(), second]], "south": [[sums()]]}))
    answers = calls.ask(("north", "south"), STATISTICS, {}, calls.admit_training({"sums": (3, 2)}))
    assert answers["north"].arrays["sums"].tolist() == [[1, 1], [1, 1], [1, 1]]


def test_a_good_answer_after_a_refused_one_does_not_count(make_study):
    calls = calls_to(make_study(), Scripted({"north": [[sums()]], "south": [[sums(arrays={}), sums()]]}))
    assert ask(calls, STATISTICS) == ["north"]
    assert calls.problems["south"] == "statistics: sums is missing, expected [3, None]"


def test_a_late_answer_and_one_of_a_site_that_was_not_asked_do_not_count(make_study):
    late = Scripted({"north": [[sums()]], "south": [[sums()]]}, late=True)
    assert ask(calls_to(make_study(), late), STATISTICS) == []
    stranger = Scripted({"stranger": [[sums()]], "north": [[sums()]], "south": [[sums()]]})
    assert ask(calls_to(make_study(), stranger), STATISTICS) == ["north", "south"]


# --- plans ---------------------------------------------------------------------------------------


def test_the_weights_are_sent_until_a_site_has_answered_once(make_study):
    sites = Scripted({"north": [[sums()]] * 2, "south": [[], [sums()]]})
    calls = calls_to(make_study(), sites)
    ask(calls, STATISTICS, {"point": np.zeros(1)})
    ask(calls, VOTE, {"point": np.zeros(1)})
    first, second = sites.plans
    assert set(first["north"].arrays) == set(first["south"].arrays) == {"weights/w", "point"}
    assert set(second["north"].arrays) == {"point"}
    assert set(second["south"].arrays) == {"weights/w", "point"}


def test_the_same_step_has_the_same_plan_id_and_another_step_another(make_study):
    def ids(step: head_steps.HeadStep) -> dict[str, str]:
        sites = Scripted({"north": [[]], "south": [[]]})
        ask(calls_to(make_study(), sites), step)
        return {site: plan.plan_id for site, plan in sites.plans[0].items()}

    assert ids(STATISTICS) == ids(STATISTICS)
    assert len({*ids(STATISTICS).values(), *ids(SCORE).values()}) == 4


@pytest.mark.parametrize(("closing", "expected"), [(False, 4), (True, 3)])
def test_the_closing_evaluation_counts_one_round_more_than_its_weights(make_study, closing, expected):
    calls = calls_to(make_study(), Scripted({}))
    calls.state = RoundState(4, {}, {}, {}, closing=closing)
    assert calls.round == expected
