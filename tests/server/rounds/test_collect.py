"""One round's collector on its own: admission, late answers, doubles, failures, quorum, progress."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from common import wire
from common.config import StudyConfig
from common.metrics import count
from common.metrics.replicates import NUM_REPLICATES, replicates
from common.weights import TensorSpec
from server.rounds.collect import RoundCollector
from server.rounds.sites import Deadline, Reply
from server.state import Cohort, Progress, RefusalStreak, RoundState

Answer = Callable[[wire.RoundPlan], wire.Answer]

LAYOUT = {"w": TensorSpec(shape=(2,), dtype="float64")}
SCORE = count(np.eye(3), np.array([0, 1, 2]), loss_sum=0.0)
NAMES = ("north", "south", "west")
START = RoundState(0, {"w": np.zeros(2)}, LAYOUT, {})
COHORT = Cohort(
    {
        name: wire.Enrolment(
            plan_id="e", site=name, layout=LAYOUT, weights_digest="a", frozen_digest="b", preprocessing={},
            train_counts=(2, 1, 1), validation_counts=(1, 1, 1), test_counts=(1, 1, 1), device="cpu", weights={},
        )
        for name in NAMES
    },
    START.weights,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


@pytest.fixture
def study(make_study) -> StudyConfig:
    """Three sites train, two of them are a quorum, and a round waits for an hour."""
    return make_study(sites={"train": NAMES, "required": 2}, deadlines={"round_s": 3600, "evaluate_s": 60})


def update(length: float, num_examples: int = 4) -> Answer:
    """An answer with the delta (length, 0)."""
    return lambda plan: wire.RoundAnswer(
        plan_id=plan.plan_id, site=plan.site, round=plan.round, scores=dict.fromkeys(plan.score, SCORE),
        num_examples=num_examples if plan.train else 0, num_steps=1, train_loss=0.5 if plan.train else None,
        train_s=2.0, evaluate_s=1.0, delta={"w": np.array([length, 0.0])} if plan.train else {},
    )  # fmt: skip


def failure(plan: wire.RoundPlan) -> wire.Failure:
    return wire.Failure(plan_id=plan.plan_id, site=plan.site, error="memory", case="1a2b", advice="no memory")


@dataclass
class Scripted:
    """Sites that answer in this order, one list of (site, answer) an attempt."""

    script: list[list[tuple[str, Answer]]]
    late: frozenset[str] = frozenset()
    asked: list[list[str]] = field(default_factory=list)
    ids: dict[str, list[str]] = field(default_factory=dict)

    def online(self) -> set[str]:
        return set(NAMES)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        self.asked.append(list(plans))
        self.deadline = deadline
        for site, plan in plans.items():
            self.ids.setdefault(site, []).append(plan.plan_id)
        for site, answer in self.script[len(self.asked) - 1]:
            plan = plans.get(site, next(iter(plans.values())))
            assert isinstance(plan, wire.RoundPlan)
            yield Reply(site, answer(plan), 1.5, late=site in self.late)


def collected(
    study: StudyConfig, sites: Scripted, state: RoundState = START, *, train: bool = True
) -> RoundCollector:
    collector = RoundCollector(study, COHORT, state, train=train)
    for _ in sites.script:
        collector.ask(sites)
    return collector


def outcomes(collector: RoundCollector) -> dict[str, str]:
    return {row.site: row.outcome for row in collector.rows}


def reasons(collector: RoundCollector) -> dict[str, str]:
    return {row.site: row.reason for row in collector.rows if row.reason}


# --- answers ---------------------------------------------------------------------------------------


def test_admitted_updates_are_averaged_by_their_examples(study):
    collector = collected(
        study, Scripted([[("west", update(3.0, 3)), ("north", update(1.0, 1)), ("south", update(2.0))]])
    )
    # (3 * 3 + 1 * 1 + 4 * 2) / 8 = 2.25
    assert collector.tally.result(without=collector.left_out)["w"].tolist() == [2.25, 0.0]
    assert outcomes(collector) == dict.fromkeys(NAMES, "ok")
    assert collector.rows[0].delta_norm == 1.0
    assert (collector.rows[0].train_s, collector.rows[0].answered_after_s) == (2.0, 1.5)


def test_an_update_that_is_not_admitted_is_a_row_and_no_summand(study, caplog):
    collector = collected(
        study, Scripted([[("north", update(1.0)), ("south", update(np.nan)), ("west", update(3.0))]])
    )
    assert outcomes(collector)["south"] == "refused"
    assert "1 of 2 entries of w are not finite" in reasons(collector)["south"]
    assert collector.tally.result(without=collector.left_out)["w"].tolist() == [2.0, 0.0]
    assert set(collector.after.scores) == {"north", "west"}
    assert "round 1  south: refused after 1.5 s: 1 of 2 entries" in caplog.text


def test_an_answer_of_another_kind_is_refused(study):
    def overlap(plan: wire.RoundPlan) -> wire.Answer:
        return wire.OverlapAnswer(plan_id=plan.plan_id, site=plan.site, check="0" * 16, same=(), similar=())

    collector = collected(study, Scripted([[("south", overlap)]]))
    assert reasons(collector)["south"] == "its answer is of kind overlap_answer, expected one to round 1"


def test_a_failure_is_a_row_with_the_sites_advice_and_case(study):
    collector = collected(study, Scripted([[("south", failure)]]))
    assert outcomes(collector)["south"] == "failed"
    assert reasons(collector)["south"] == "no memory (memory, case 1a2b in its log)"


def test_a_silent_site_is_missing_after_the_whole_deadline(study):
    collector = collected(study, Scripted([[("north", update(1.0)), ("south", update(1.0))]]))
    west = collector.rows[2]
    assert (west.outcome, west.reason) == ("missing", "no answer within 3600 s")
    assert west.answered_after_s == 3600


def test_a_late_answer_is_logged_and_does_not_count(study, caplog):
    collector = collected(study, Scripted([[("west", update(1.0))]], late=frozenset({"west"})))
    assert outcomes(collector)["west"] == "missing"
    assert collector.num_answered == 0
    assert "round 1  west: late answer to round 1 dropped (deadline passed)" in caplog.text


def test_many_second_answers_are_mentioned_once_in_the_row_of_the_first(study):
    collector = collected(study, Scripted([[("north", update(length)) for length in (1.0, 5.0, 9.0)]]))
    assert reasons(collector)["north"] == "a second answer was refused, the first one counts"
    assert collector.tally.result(without=collector.left_out)["w"].tolist() == [1.0, 0.0]


def test_an_answer_of_a_site_without_a_plan_has_no_row(study, caplog):
    collector = collected(study, Scripted([[("stranger", update(1.0))]]))
    assert set(outcomes(collector)) == set(NAMES)
    assert "stranger: an answer was refused, the site was not asked" in caplog.text


# --- quorum and repetitions ------------------------------------------------------------------------


def test_only_admitted_answers_of_training_sites_count_for_the_quorum(make_study):
    study = make_study(sites={"train": ("north", "south"), "evaluate": ("west",)})
    collector = collected(
        study, Scripted([[("north", update(1.0)), ("south", update(np.nan)), ("west", update(1.0))]])
    )
    assert collector.num_answered == 1


def test_a_repetition_asks_failed_and_silent_sites_for_the_same_work(make_study):
    study = make_study(sites={"train": NAMES})
    sites = Scripted([[("north", update(1.0)), ("south", failure)], [("south", update(3.0))]])
    collector = collected(study, sites)
    assert sites.asked == [["north", "south", "west"], ["south", "west"]]
    assert len(set(sites.ids["south"])) == 1
    assert collector.attempts == collector.after.attempts == 2
    assert collector.tally.result(without=collector.left_out)["w"].tolist() == [2.0, 0.0]


def test_a_site_that_is_silent_in_the_repetition_gets_the_reason_of_the_repetition(study):
    collector = collected(study, Scripted([[("south", failure)], []]))
    assert reasons(collector)["south"] == "no answer within 3600 s"


def test_a_refused_site_is_not_asked_again(study):
    collector = collected(study, Scripted([[("south", update(np.nan)), ("north", update(1.0))]]))
    assert collector.unheard == ["west"]


def test_with_a_quorum_the_deadline_comes_nearer(make_study):
    study = make_study(
        sites={"train": NAMES, "required": 2},
        deadlines={"round_s": 3600, "grace": {"kind": "cut_off", "after_quorum_s": 10}},
    )
    sites = Scripted([[("north", update(1.0))], [("south", update(1.0))]])
    collector = RoundCollector(study, COHORT, START, train=True)
    collector.ask(sites)
    assert sites.deadline.seconds == 3600
    collector.ask(sites)
    assert sites.deadline.seconds == pytest.approx(10, abs=5)


def test_an_update_much_longer_than_the_others_loses_vote_and_score(make_study):
    study = make_study(sites={"train": NAMES, "required": 2}, admission={"max_norm_ratio": 4})
    collector = collected(
        study, Scripted([[("north", update(1.0)), ("south", update(9.0)), ("west", update(3.0))]])
    )
    # the median of 1 and 3 is 2, and 9 is more than 4 times as much
    assert collector.left_out == {"south"}
    assert outcomes(collector)["south"] == "refused"
    assert collector.tally.result(without=collector.left_out)["w"].tolist() == [2.0, 0.0]
    assert set(collector.after.scores) == {"north", "west"}


# --- who is asked ----------------------------------------------------------------------------------


def test_a_site_that_is_set_aside_gets_no_plan_and_a_row(make_study):
    study = make_study(sites={"train": NAMES, "required": 2}, admission={"set_aside_after": 2})
    state = RoundState(5, START.weights, LAYOUT, {}, refusals={"south": RefusalStreak(2, 5, "too long")})
    sites = Scripted([[("north", update(1.0))]])
    collector = collected(study, sites, state)
    assert sites.asked == [["north", "west"]]
    assert outcomes(collector)["south"] == "set_aside"
    assert reasons(collector)["south"].endswith("no plan until the operator readmits it")


def test_the_closing_evaluation_asks_for_scores_within_its_own_deadline(study):
    sites = Scripted([[(name, update(1.0)) for name in NAMES]])
    collector = collected(study, sites, train=False)
    assert collector.num_answered == 3
    assert set(collector.after.scores) == set(NAMES)
    assert [row.delta_norm for row in collector.rows] == [None] * 3
    silent = collected(study, Scripted([[]]), train=False)
    assert reasons(silent)["north"] == "no answer within 60 s"


# --- progress --------------------------------------------------------------------------------------


def test_progress_is_reported_at_the_start_and_at_every_answer(study):
    seen: list[Progress] = []
    collector = RoundCollector(study, COHORT, START, train=True, on_progress=seen.append)
    collector.ask(Scripted([[("north", update(1.0)), ("south", failure)]]))
    assert [{site: asked.outcome for site, asked in progress.sites.items()} for progress in seen] == [
        {"north": "awaited", "south": "awaited", "west": "awaited"},
        {"north": "ok", "south": "awaited", "west": "awaited"},
        {"north": "ok", "south": "failed", "west": "awaited"},
        {"north": "ok", "south": "failed", "west": "missing"},
    ]
    last = seen[-1]
    assert (last.round, last.rounds, last.attempt, last.closing, last.deadline_s) == (1, 2, 1, False, 3600)
    assert [asked.after_s for asked in last.sites.values()] == [1.5, 1.5, None]


# --- sites without a plan --------------------------------------------------------------------------


def test_a_site_that_did_not_enrol_has_a_row_with_its_reason_and_no_plan(study):
    seen: list[Progress] = []
    cohort = Cohort(
        {name: COHORT.enrolments[name] for name in ("north", "south")}, START.weights, {"west": "no\x1bkey"}
    )
    sites = Scripted([[("north", update(1.0)), ("south", update(1.0))]])
    collector = RoundCollector(study, cohort, START, train=True, on_progress=seen.append)
    collector.ask(sites)
    assert sites.asked == [["north", "south"]]
    assert outcomes(collector) == {"north": "ok", "south": "ok", "west": "absent"}
    assert reasons(collector) == {"west": "no\\x1bkey"}
    assert (seen[-1].sites["west"].outcome, seen[-1].sites["west"].after_s) == ("absent", None)
    assert "west" not in collector.unheard
    assert collector.after.absences["west"].round == 1


@pytest.mark.parametrize("kind", ["set_aside", "absent"])
def test_an_answer_of_a_site_that_was_not_asked_is_no_second_answer(study, caplog, kind):
    study = study.model_copy(update={"admission": study.admission.model_copy(update={"set_aside_after": 1})})
    aside = START if kind == "absent" else RoundState(
        0, START.weights, LAYOUT, {}, refusals={"west": RefusalStreak(1, 0, "too long")}
    )  # fmt: skip
    cohort = COHORT
    if kind == "absent":
        some = {name: COHORT.enrolments[name] for name in ("north", "south")}
        cohort = Cohort(some, START.weights, {"west": "no key"})
    collector = RoundCollector(study, cohort, aside, train=True)
    collector.ask(Scripted([[("north", update(1.0)), ("south", update(1.0)), ("west", update(1.0))]]))
    assert "west: an answer was refused, the site was not asked" in caplog.text
    assert "second answer" not in caplog.text
    assert outcomes(collector)["west"] == kind


def test_sums_over_patients_of_the_final_test_are_kept_by_site(study):
    sums = replicates(np.eye(3, 10), np.ones((3, NUM_REPLICATES)), "0a" * 8)

    def with_sums(plan: wire.RoundPlan) -> wire.RoundAnswer:
        return update(0.0)(plan).model_copy(update={"replicates": sums})

    collector = RoundCollector(study, COHORT, START, train=False, score=("test",))
    sites = Scripted([[("south", with_sums), ("north", update(0.0)), ("west", with_sums)]])
    collector.ask(sites)
    assert outcomes(collector) == dict.fromkeys(NAMES, "ok")
    assert collector.after.replicates == {"south": sums, "west": sums}


def test_sums_over_patients_in_a_round_of_training_are_refused(study):
    sums = replicates(np.eye(3, 10), np.ones((3, NUM_REPLICATES)), "0a" * 8)

    def with_sums(plan: wire.RoundPlan) -> wire.RoundAnswer:
        return update(1.0)(plan).model_copy(update={"replicates": sums})

    collector = collected(
        study, Scripted([[("south", with_sums), ("north", update(1.0)), ("west", update(1.0))]])
    )
    assert "were not asked for" in reasons(collector)["south"]
    assert collector.after.replicates == {}
