"""Rounds with sites that are functions: who is heard, who is told what, who is asked no more."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from common import wire
from common.errors import QuorumNotMet
from common.metrics import count
from common.weights import TensorSpec, digest
from server import checkpoint, history
from server.enrolment import Cohort
from server.rounds import run_rounds
from server.sites import InProcessSites, Reply
from server.standing import notice, readmitted
from server.state import Refusals, RoundState

LAYOUT = {"w": TensorSpec(shape=(2,), dtype="float64")}
SCORE = count(np.eye(3), np.array([0, 1, 2]), loss_sum=0.0)


@pytest.fixture(autouse=True)
def _propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


class Site:
    """Answers every plan with the same delta, and remembers what it was sent."""

    def __init__(self, entry: float, num_examples: int = 4) -> None:
        self.entry = entry
        self.num_examples = num_examples
        self.plans: list[wire.RoundPlan] = []

    def __call__(self, request: bytes) -> bytes:
        plan = wire.from_bytes(request)
        assert isinstance(plan, wire.RoundPlan)
        self.plans.append(plan)
        return wire.to_bytes(self.answer(plan))

    def answer(self, plan: wire.RoundPlan) -> wire.RoundAnswer:
        return wire.RoundAnswer(
            plan_id=plan.plan_id, site=plan.site, round=plan.round, score=SCORE,
            num_examples=self.num_examples if plan.train else 0, num_steps=1, train_loss=0.5 if plan.train else None,
            train_s=0.0, evaluate_s=0.0, delta={"w": np.array([self.entry, 0.0])} if plan.train else {},
        )  # fmt: skip


class Replaying(Site):
    """Says in every round what it said in the first one."""

    def answer(self, plan: wire.RoundPlan) -> wire.RoundAnswer:
        return super().answer(self.plans[0])


class Forging(Site):
    """Answers with a plan id that would look well in somebody's log."""

    def answer(self, plan: wire.RoundPlan) -> wire.RoundAnswer:
        return super().answer(plan).model_copy(update={"plan_id": "x\nERROR: all is lost\x1b[2J"})


def cohort(sites: Mapping[str, Site]) -> Cohort:
    return Cohort(
        {
            name: wire.Enrolment(
                plan_id="e", site=name, layout=LAYOUT, weights_digest="a", frozen_digest="b", preprocessing={},
                train_counts=(2, 1, 1), test_counts=(1, 1, 1), device="cpu", weights={},
            )
            for name in sorted(sites)
        },
        {"w": np.zeros(2)},
    )  # fmt: skip


START = RoundState(0, {"w": np.zeros(2)}, LAYOUT, {})


def states(study, sites, start=START, carrier: Callable = InProcessSites) -> list[RoundState]:
    return list(run_rounds(study, carrier(sites), cohort(sites), start))


def outcomes(history_: list[RoundState], site: str) -> list[str]:
    return [next(row.outcome for row in state.sites if row.site == site) for state in history_]


@pytest.fixture
def make_three(make_study):
    """A study of north, south and west that goes on with two of them."""
    return lambda **changes: make_study(
        **({"sites": {"train": ("north", "south", "west"), "required": 2}, "rounds": 4} | changes)
    )


BOUNDED = {"max_norm": 10, "set_aside_after": 2}


def three(south: float = 100.0) -> dict[str, Site]:
    return {"north": Site(1.0, num_examples=1), "south": Site(south), "west": Site(3.0, num_examples=3)}


def test_a_site_that_is_refused_again_and_again_is_set_aside(make_three, caplog):
    sites = three()
    after = states(make_three(admission=BOUNDED), sites)
    assert outcomes(after, "south") == ["refused", "refused", "set_aside", "set_aside", "set_aside"]
    assert [plan.round for plan in sites["south"].plans] == [1, 2]
    assert [plan.round for plan in sites["north"].plans] == [1, 2, 3, 4, 5]
    # every round steps by (1 * 1 + 3 * 3) / 4 = 2.5, from north and west alone
    assert [float(state.weights["w"][0]) for state in after] == [2.5, 5.0, 7.5, 10.0, 10.0]
    assert (
        "south is set aside and gets no more plans: refused 2 time(s) in a row, last in round 2: "
        "its norm is 100, expected at most 10" in caplog.text
    )


def test_a_refused_site_is_told_why_until_an_answer_of_it_is_admitted(make_three):
    class Mending(Site):
        def answer(self, plan: wire.RoundPlan) -> wire.RoundAnswer:
            self.entry = 1.0 if plan.round >= 3 else 100.0
            return super().answer(plan)

    sites = three() | {"south": Mending(100.0)}
    states(make_three(admission={"max_norm": 10, "set_aside_after": 3}), sites)
    because = "in a row, last in round {}: its norm is 100, expected at most 10"
    assert [plan.notice for plan in sites["south"].plans] == [
        None,
        f"at 3 in a row this site is set aside; refused 1 time(s) {because.format(1)}",
        f"at 3 in a row this site is set aside; refused 2 time(s) {because.format(2)}",
        None,
        None,
    ]
    assert {plan.notice for plan in sites["north"].plans} == {None}


def test_a_resumed_study_has_set_aside_the_same_sites(make_three, tmp_path):
    study = make_three(admission=BOUNDED)
    whole = states(study, three())
    for cut in (1, 2, 3):
        start = checkpoint.load(checkpoint.save(tmp_path, whole[cut - 1], study), study)
        sites = three()
        rest = states(study, sites, start)
        assert outcomes(rest, "south") == outcomes(whole[cut:], "south")
        assert [digest(state.weights) for state in rest] == [digest(state.weights) for state in whole[cut:]]
        # Only after round 1 does it get another plan, and that says what it would have said.
        told = [plan.notice for plan in sites["south"].plans]
        assert told == ([notice(whole[0].refusals["south"], 2)] if cut == 1 else [])


def test_an_operator_can_let_a_site_back_in(make_three):
    study = make_three(admission=BOUNDED)
    third = states(study, three())[2]
    rest = states(study, three(south=1.0), readmitted(third, ["south"]))
    assert outcomes(rest, "south") == ["ok", "ok"]


def test_a_quorum_is_counted_without_the_sites_that_are_set_aside(make_three):
    broken = replace(START, refusals={"south": Refusals(2, 1, "it was"), "west": Refusals(2, 1, "it was")})
    with pytest.raises(QuorumNotMet, match=r"round 1 has 1 usable .* 2 are required \(south: refused 2 time"):
        states(make_three(admission=BOUNDED), three(), broken)


def test_what_was_set_aside_is_on_record(make_three, tmp_path):
    for state in states(make_three(admission=BOUNDED), three()):
        history.append_round(tmp_path, state)
    rows = [next(row for row in line.sites if row.site == "south") for line in history.read_rounds(tmp_path)]
    assert [row.outcome for row in rows] == ["refused", "refused", "set_aside", "set_aside", "set_aside"]
    assert rows[0].reason == "its norm is 100, expected at most 10"
    assert rows[4].reason.endswith("expected at most 10; no plan until the operator readmits it")


def test_a_delta_that_is_long_beside_the_others_costs_vote_and_score(make_three):
    after = states(make_three(admission={"max_norm_ratio": 5}), three())
    # Beside 100 stand 1 and 3 with median 2: 100 > 5 * 2. Beside 3 stand 1 and 100: 3 <= 5 * 50.5.
    assert outcomes(after[:4], "south") == ["refused"] * 4
    assert sorted(after[0].scores) == ["north", "west"]
    assert after[0].weights["w"].tolist() == [2.5, 0.0]


def test_too_few_updates_of_usual_length_are_no_quorum(make_three):
    study = make_three(admission={"max_norm_ratio": 5}, sites={"train": ("north", "south", "west")})
    with pytest.raises(QuorumNotMet, match=r"2 usable .* 3 are required \(south: its norm is 100, expected"):
        states(study, three())


def test_the_rule_of_the_study_is_the_one_that_is_used(make_three):
    sites = {"train": ("north", "south", "west")}
    after = states(make_three(aggregation={"kind": "median"}, sites=sites, rounds=1), three())
    # the middle of 1, 3 and 100, whoever has how many examples
    assert after[0].weights["w"].tolist() == [3.0, 0.0]


@dataclass(frozen=True)
class Twice(InProcessSites):
    """Each answer comes twice, the second time ten times as large."""

    def ask(self, plans: Mapping[str, wire.Plan], deadline_s: float) -> Iterator[Reply]:
        for reply in super().ask(plans, deadline_s):
            yield reply
            larger = {name: 10 * array for name, array in reply.answer.delta.items()}
            yield replace(reply, answer=reply.answer.model_copy(update={"delta": larger}))


def test_of_two_answers_the_first_one_counts(make_three, caplog):
    once, twice = states(make_three(), three(1.0)), states(make_three(), three(1.0), carrier=Twice)
    assert [digest(state.weights) for state in once] == [digest(state.weights) for state in twice]
    assert outcomes(twice, "south") == ["ok"] * 5
    assert twice[0].sites[1].reason == "a second answer was refused, the first one counts"
    assert "round 1  south: a second answer was refused" in caplog.text


@dataclass(frozen=True)
class WithStranger(InProcessSites):
    """Somebody answers who was not asked."""

    def ask(self, plans: Mapping[str, wire.Plan], deadline_s: float) -> Iterator[Reply]:
        for reply in super().ask(plans, deadline_s):
            yield replace(reply, site="stranger")
            yield reply


def test_an_answer_of_a_site_that_was_not_asked_is_dropped(make_three, caplog):
    after = states(make_three(), three(1.0), carrier=WithStranger)
    assert [row.site for row in after[0].sites] == ["north", "south", "west"]
    assert "stranger: an answer was refused, it was not asked" in caplog.text


def test_an_answer_of_an_older_round_is_called_one(make_three):
    after = states(make_three(), three() | {"south": Replaying(1.0)})
    assert outcomes(after, "south") == ["ok", *["refused"] * 4]
    assert after[1].sites[1].reason.startswith("it repeats an answer of round 1 (plan ")


def test_what_a_site_says_cannot_draw_in_a_log(make_three, caplog):
    sites = three() | {"south": Forging(1.0)}
    after = states(make_three(rounds=2), sites)
    assert "it answers plan x?ERROR: all is lost?[2J, expected" in after[0].sites[1].reason
    assert "x?ERROR" in sites["south"].plans[1].notice
    assert "\x1b" not in caplog.text
