"""Rounds with sites that are functions: who is heard, who is told what, who is asked no more."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from common import wire
from common.config import AdmissionConfig
from common.errors import QuorumNotMet
from common.metrics import count
from common.weights import TensorSpec, digest
from common.wire import codec
from server.rounds import collect
from server.rounds.loop import run_rounds
from server.rounds.participation import notice, readmitted
from server.rounds.sites import Deadline, InProcessSites, Reply
from server.state import Best, Cohort, RefusalStreak, RoundState
from server.storage import checkpoint, history

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
        plan = codec.from_bytes(request)
        assert isinstance(plan, wire.RoundPlan)
        self.plans.append(plan)
        return codec.to_bytes(self.answer(plan))

    def answer(self, plan: wire.RoundPlan) -> wire.RoundAnswer:
        return wire.RoundAnswer(
            plan_id=plan.plan_id, site=plan.site, round=plan.round, scores=dict.fromkeys(plan.score, SCORE),
            num_examples=self.num_examples if plan.train else 0, num_steps=1, train_loss=0.5 if plan.train else None,
            train_s=0.0, evaluate_s=0.0, delta={"w": np.array([self.entry, 0.0])} if plan.train else {},
        )  # fmt: skip


class Replaying(Site):
    """Says in every round what it said in the first one."""

    def answer(self, plan: wire.RoundPlan) -> wire.RoundAnswer:
        return super().answer(self.plans[0])


class Forging(Site):
    """Sends a tensor whose name would look well in somebody's log."""

    def answer(self, plan: wire.RoundPlan) -> wire.RoundAnswer:
        answer = super().answer(plan)
        forged = {"a\nERROR: all is lost\x1b[2J": np.ones(1)}
        return answer.model_copy(update={"delta": {**answer.delta, **forged}})


def cohort(sites: Mapping[str, Site]) -> Cohort:
    return Cohort(
        {
            name: wire.Enrolment(
                plan_id="e", site=name, layout=LAYOUT, weights_digest="a", frozen_digest="b", preprocessing={},
                train_counts=(2, 1, 1), validation_counts=(1, 1, 1), test_counts=(1, 1, 1), device="cpu", weights={},
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
    # North and west alone: 1 and 3 with 1 and 3 examples, and no site of three has more than half of the weight.
    assert [float(state.weights["w"][0]) for state in after] == [2.0, 4.0, 6.0, 8.0, 8.0]
    assert (
        "south is set aside and gets no more plans: refused 2 time(s) in a row, last in round 2: "
        "its norm is 100, expected at most 10" in caplog.text
    )


def test_a_refused_site_reads_the_reason_until_an_answer_of_it_is_admitted(make_three):
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
    broken = replace(
        START, refusals={"south": RefusalStreak(2, 1, "it was"), "west": RefusalStreak(2, 1, "it was")}
    )
    with pytest.raises(
        QuorumNotMet, match=r"round 1 has 1 usable .* 2 are required \(south since round 1 .*: refused 2 time"
    ):
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
    assert after[0].weights["w"].tolist() == [2.0, 0.0]


def test_a_site_with_most_examples_has_half_of_the_weight_unless_the_study_says_otherwise(make_three, caplog):
    # 1, 5 and 3 with 1, 4 and 3 examples: 4 of 8 are no more than half. (1 + 20 + 9) / 8 = 3.75
    even = states(make_three(rounds=1), three(5.0))
    assert even[0].weights["w"].tolist() == [3.75, 0.0]
    assert "max_share" not in caplog.text
    # With 0.4 the shares are 1/4 * 0.6, 0.4 and 3/4 * 0.6: 0.15 + 2 + 1.35 = 3.5; 0.45 is more than 0.4, so both are
    # at 0.4 and north has the rest: 0.2 + 2 + 1.2 = 3.4
    limited = {"kind": "mean", "max_share": 0.4}
    lower = states(make_three(rounds=1, aggregation=limited), three(5.0))
    assert lower[0].weights["w"][0] == pytest.approx(3.4)
    assert "south: claims 4 examples, 50 % of this round's; its weight is cut to 40 %" in caplog.text


def test_too_few_updates_of_usual_length_are_no_quorum(make_three):
    study = make_three(admission={"max_norm_ratio": 5}, sites={"train": ("north", "south", "west")})
    with pytest.raises(
        QuorumNotMet, match=r"2 usable .* 3 are required \(south since round 1 .*: its norm is 100, expected"
    ):
        states(study, three())


def test_the_rule_of_the_study_is_the_one_that_is_used(make_three):
    sites = {"train": ("north", "south", "west")}
    after = states(make_three(aggregation={"kind": "median"}, sites=sites, rounds=1), three())
    # the middle of 1, 3 and 100, whoever has how many examples
    assert after[0].weights["w"].tolist() == [3.0, 0.0]


@dataclass(frozen=True)
class Twice(InProcessSites):
    """Each answer comes twice, the second time ten times as large."""

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for reply in super().ask(plans, deadline):
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

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for reply in super().ask(plans, deadline):
            yield replace(reply, site="stranger")
            yield reply


def test_an_answer_of_a_site_that_was_not_asked_is_dropped(make_three, caplog):
    after = states(make_three(), three(1.0), carrier=WithStranger)
    assert [row.site for row in after[0].sites] == ["north", "south", "west"]
    assert "stranger: an answer was refused, the site was not asked" in caplog.text


def test_an_answer_of_an_older_round_is_called_one(make_three):
    after = states(make_three(), three() | {"south": Replaying(1.0)})
    assert outcomes(after, "south") == ["ok", *["refused"] * 4]
    assert after[1].sites[1].reason.startswith("it repeats an answer of round 1 (plan ")


def test_what_a_site_says_cannot_draw_in_a_log(make_three, caplog):
    sites = three() | {"south": Forging(1.0)}
    after = states(make_three(rounds=2), sites)
    assert r"a\nERROR: all is lost\x1b[2J is not part of the study" in after[0].sites[1].reason
    assert r"a\nERROR" in sites["south"].plans[1].notice
    assert "\x1b" not in caplog.text


class Flaky(Site):
    """Fails in the first `num_failures` calls, then answers."""

    def __init__(self, entry: float, num_failures: int) -> None:
        super().__init__(entry)
        self.num_failures = num_failures

    def __call__(self, request: bytes) -> bytes:
        if len(self.plans) >= self.num_failures:
            return super().__call__(request)
        plan = codec.from_bytes(request)
        assert isinstance(plan, wire.RoundPlan)
        self.plans.append(plan)
        return codec.to_bytes(
            wire.Failure(
                plan_id=plan.plan_id, site=plan.site, error="memory", case="1a2b", advice="no memory"
            )
        )


def all_three(make_three, **deadlines):
    """A study that needs all three sites, and so many repetitions."""
    return make_three(
        sites={"train": ("north", "south", "west")},
        deadlines={"repeat_after_s": 7} | deadlines,
        rounds=2,
    )


def repeated(study, sites, pauses: list[float] | None = None) -> list[RoundState]:
    wait = (pauses if pauses is not None else []).append
    return list(run_rounds(study, InProcessSites(sites), cohort(sites), START, pause=wait))


def test_a_round_below_the_quorum_is_repeated_for_those_who_lacked(make_three, caplog):
    sites, pauses = three() | {"south": Flaky(2.0, num_failures=2)}, []
    after = repeated(all_three(make_three, repeats=2), sites, pauses)
    # (1 * 1 + 4 * 2 + 3 * 3) / 8 = 2.25 a round, as if nothing had happened
    assert [float(state.weights["w"][0]) for state in after] == [2.25, 4.5, 4.5]
    assert [state.attempts for state in after] == [3, 1, 1]
    assert [plan.round for plan in sites["north"].plans] == [1, 2, 3]
    assert [plan.round for plan in sites["south"].plans] == [1, 1, 1, 2, 3]
    assert pauses == [7, 7]
    assert (
        "UTC): no memory (memory, case 1a2b in its log)); asking south again in 7 s (repetition 1 of 2)"
        in caplog.text
    )


def test_a_repetition_sends_the_same_plan_so_that_no_site_trains_twice(make_three):
    sites = three() | {"south": Flaky(2.0, num_failures=1)}
    repeated(all_three(make_three), sites)
    first, again, *_ = sites["south"].plans
    assert first.plan_id == again.plan_id


def test_a_server_that_was_killed_asks_for_the_same_work_under_the_same_id(make_three):
    study = make_three()
    first, again = three(1.0), three(1.0)
    whole = states(study, first)
    states(study, again, whole[1])
    ids = {name: [plan.plan_id for plan in site.plans] for name, site in first.items()}
    assert {name: [plan.plan_id for plan in site.plans] for name, site in again.items()} == {
        name: plan_ids[2:] for name, plan_ids in ids.items()
    }
    assert len({plan_id for plan_ids in ids.values() for plan_id in plan_ids}) == 3 * 5


def test_a_repetition_waits_until_enough_sites_are_connected_again(make_three, caplog):
    @dataclass(frozen=True)
    class Away(InProcessSites):
        """South is not there for the first three looks."""

        looks: list[int]

        def online(self) -> set[str]:
            self.looks.append(1)
            return {"north", "west"} | ({"south"} if len(self.looks) > 3 else set())

    sites, pauses = three() | {"south": Flaky(2.0, num_failures=1)}, []
    away = Away(sites, [])
    after = list(run_rounds(all_three(make_three), away, cohort(sites), START, pause=pauses.append))
    assert [state.attempts for state in after] == [2, 1, 1]
    # South is missing at three looks: the first, the one that names it, and the first of the wait.
    assert pauses == [7, 0.5]
    assert "waiting for south to connect" in caplog.text


def test_a_repetition_waits_no_longer_than_a_round(make_three):
    class HeadUnavailable(InProcessSites):
        def online(self) -> set[str]:
            return {"north", "west"}

    sites, pauses = three() | {"south": Flaky(2.0, num_failures=9)}, []
    study = all_three(make_three, round_s=2)
    with pytest.raises(QuorumNotMet, match="after 2 attempts"):
        list(run_rounds(study, HeadUnavailable(sites), cohort(sites), START, pause=pauses.append))
    assert pauses == [7, 0.5, 0.5, 0.5, 0.5]


def test_after_the_last_repetition_the_study_fails_and_says_who_lacked_since_when(make_three):
    sites, pauses = three() | {"south": Flaky(2.0, num_failures=9)}, []
    with pytest.raises(
        QuorumNotMet,
        match=r"round 1 has 2 usable .* \(south since round 1 \(\d{4}-\d\d-\d\d \d\d:\d\d UTC\): no memory "
        r"\(memory, case 1a2b in its log\)\) after 3 attempts\. The weights after round 0 are kept",
    ):
        repeated(all_three(make_three, repeats=2), sites, pauses)
    assert pauses == [7, 7]


def test_a_refused_site_would_repeat_itself_and_is_not_asked_again(make_three):
    sites, pauses = three(), []
    study = all_three(make_three, repeats=2).model_copy(update={"admission": AdmissionConfig(max_norm=10)})
    with pytest.raises(QuorumNotMet, match=r"south since round 1 .*: its norm is 100"):
        repeated(study, sites, pauses)
    assert pauses == []
    assert len(sites["south"].plans) == 1


def test_who_has_been_away_for_long_is_listed_with_the_time_since_when(make_three):
    class Leaving(Site):
        def answer(self, plan: wire.RoundPlan) -> wire.RoundAnswer | wire.Failure:
            if plan.round < self.leaves:
                return super().answer(plan)
            return wire.Failure(plan_id=plan.plan_id, site=plan.site, error="data", case="1", advice="gone")

    sites = three(1.0) | {"south": Leaving(1.0), "west": Leaving(3.0)}
    sites["south"].leaves, sites["west"].leaves = 2, 4
    with pytest.raises(QuorumNotMet, match=r"south since round 2 \(.*west since round 4 \("):
        states(make_three(), sites)


@dataclass(frozen=True)
class Slow(InProcessSites):
    """Answers come in the order of `after_s`, seconds that pass on a clock that does not run."""

    after_s: Mapping[str, float]
    clock: list[float]

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        started = self.clock[0]
        replies = {reply.site: reply for reply in super().ask(plans, deadline)}
        for site in sorted(replies, key=lambda site: self.after_s[site]):
            if self.after_s[site] > deadline.seconds:
                break
            self.clock[0] = started + self.after_s[site]
            yield replace(replies[site], after_s=self.after_s[site])
        else:
            return
        self.clock[0] = started + deadline.seconds


def slow(study, monkeypatch, start=START, **after_s: float) -> list[RoundState]:
    clock, sites = [0.0], three(1.0)
    monkeypatch.setattr(collect, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return list(run_rounds(study, Slow(sites, after_s, clock), cohort(sites), start))


def test_a_cut_off_leaves_the_slow_site_behind_once_there_are_enough(make_three, monkeypatch):
    study = make_three(deadlines={"grace": {"kind": "cut_off", "after_quorum_s": 5}}, rounds=1)
    first, _ = slow(study, monkeypatch, north=2.0, south=40.0, west=4.0)
    assert [(row.outcome, row.reason) for row in first.sites] == [
        ("ok", ""),
        ("missing", "no answer within 9 s"),  # 4 s to the quorum of two, and 5
        ("ok", ""),
    ]
    assert first.seconds == 9.0


def test_a_slow_site_is_in_the_round_if_its_grace_reaches_so_far(make_three, monkeypatch):
    study = make_three(deadlines={"grace": {"kind": "cut_off", "after_quorum_s": 5}}, rounds=1)
    first, _ = slow(study, monkeypatch, north=2.0, south=8.5, west=4.0)
    assert outcomes([first], "south") == ["ok"]


def test_a_percentile_learns_from_the_rounds_before(make_three, monkeypatch):
    grace = {"kind": "percentile", "percentile": 90, "factor": 1.5}
    study = make_three(deadlines={"grace": grace}, rounds=1)
    known = replace(START, answer_times=(2.0, 4.0, 6.0))
    first, _ = slow(study, monkeypatch, start=known, north=2.0, south=40.0, west=4.0)
    # the third of three answers took 6 s; half as long again is 9 s
    assert first.sites[1].reason == "no answer within 9 s"
    assert first.answer_times == (2.0, 4.0, 6.0, 2.0, 4.0)


@dataclass(frozen=True)
class WithLate(InProcessSites):
    """Before every answer comes one that nobody waits for any more."""

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for reply in super().ask(plans, deadline):
            answer = reply.answer.model_copy(update={"plan_id": "old", "round": 1})
            yield replace(reply, answer=answer, late=True)
            yield reply


def test_a_late_answer_is_named_and_dropped_and_costs_its_site_nothing(make_three, caplog):
    sites = {"north": Site(1.0, num_examples=1), "west": Site(3.0, num_examples=3)}
    after = states(make_three(sites={"train": ("north", "west")}), sites, carrier=WithLate)
    assert outcomes(after, "west") == ["ok"] * 5
    assert "round 3  west: late answer to round 1 dropped" in caplog.text


def test_an_operator_lets_a_site_back_in_between_two_rounds(make_three):
    wishes = iter([(), (), (), ("south",)])
    sites = three()
    study = make_three(admission=BOUNDED)
    after = list(run_rounds(study, InProcessSites(sites), cohort(sites), START, readmit=lambda: next(wishes)))
    assert outcomes(after[:4], "south") == ["refused", "refused", "set_aside", "refused"]


class Scoring(Site):
    """Gets so many of ten images right, round by round."""

    def __init__(self, *num_right: int) -> None:
        super().__init__(1.0)
        self.num_right = num_right

    def answer(self, plan: wire.RoundPlan) -> wire.RoundAnswer:
        labels_N = np.array([0, 1, 2] * 10)
        says_N = labels_N.copy()
        says_N[3 * self.num_right[plan.round - 1] :] = (says_N[3 * self.num_right[plan.round - 1] :] + 1) % 3
        score = count(np.eye(3)[says_N], labels_N, loss_sum=0.0)
        return super().answer(plan).model_copy(update={"scores": dict.fromkeys(plan.score, score)})


def chosen(
    make_study, *num_right: int, start: RoundState = START, site: Scoring | None = None, **selection
) -> list[RoundState]:
    """Rounds of a study whose model gets so many of 10 images of each class right in round 1, 2, ..."""
    study = make_study(sites={"train": ("north",)}, selection=selection, rounds=len(num_right) - 1)
    sites = {"north": site or Scoring(*num_right)}
    ten = {"validation_counts": (10, 10, 10), "test_counts": (10, 10, 10)}
    one = cohort(sites).enrolments["north"].model_copy(update=ten)
    after: list[RoundState] = []

    def best_weights() -> Mapping[str, np.ndarray]:
        # The closing round judges the last weights, so the best of those before is meant.
        return next(state.weights for state in after if state.round == after[-1].best.round)

    enrolled = Cohort({"north": one}, {"w": np.zeros(2)})
    for state in run_rounds(study, InProcessSites(sites), enrolled, start, best_weights=best_weights):
        after.append(state)
    return after


def test_the_test_images_are_scored_once_with_the_weights_that_were_chosen(make_study):
    site = Scoring(1, 4, 8, 6, 7)
    last = chosen(make_study, 1, 4, 8, 6, 7, site=site)[-1]
    assert [(plan.round, plan.train, plan.score) for plan in site.plans] == [
        (1, True, ("validation",)), (2, True, ("validation",)), (3, True, ("validation",)),
        (4, True, ("validation",)), (5, False, ("validation",)), (3, False, ("test",)),
    ]  # fmt: skip
    # The weights after round 2 are 2, and get 8 of 10 right; those of the last round are 4.
    assert site.plans[-1].weights["w"].tolist() == [2.0, 0.0]
    assert (last.chosen.round, last.weights["w"].tolist()) == (2, [4.0, 0.0])
    assert last.test_scores["north"].confusion_CC.trace() == 24
    assert last.scores["north"].confusion_CC.trace() == 21


def test_a_study_that_chooses_nothing_closes_with_one_message(make_study):
    sites = {"north": Site(1.0)}
    study = make_study(sites={"train": ("north",)}, rounds=1)
    last = states(study, sites)[-1]
    assert [(plan.train, plan.score) for plan in sites["north"].plans] == [
        (True, ("validation",)), (False, ("validation", "test")),
    ]  # fmt: skip
    assert (last.chosen.round, list(last.test_scores)) == (1, ["north"])


def test_a_site_that_only_scores_is_asked_where_it_has_images(make_study):
    sites = {"north": Site(1.0), "unseen": Site(1.0)}
    study = make_study(sites={"train": ("north",), "evaluate": ("unseen",)}, rounds=2)
    enrolled = cohort(sites)
    only_test = enrolled.enrolments["unseen"].model_copy(update={"validation_counts": (0, 0, 0)})
    enrolled = replace(enrolled, enrolments={**enrolled.enrolments, "unseen": only_test})
    list(run_rounds(study, InProcessSites(sites), enrolled, START))
    assert [plan.round for plan in sites["unseen"].plans] == [3]


def test_training_sites_score_as_often_as_the_study_says_and_train_in_every_round(make_study):
    sites = {"north": Site(1.0)}
    states(make_study(sites={"train": ("north",), "evaluate_every": 2}, rounds=4), sites)
    assert [(plan.train, plan.score) for plan in sites["north"].plans] == [
        (True, ("validation",)), (True, ()), (True, ("validation",)), (True, ()),
        (False, ("validation", "test")),
    ]  # fmt: skip


def test_curves_on_test_images_are_asked_for_only_by_a_study_that_says_so(make_study):
    sites = {"north": Site(1.0)}
    states(make_study(sites={"train": ("north",)}, rounds=1, curves_on="test"), sites)
    assert [plan.score for plan in sites["north"].plans] == [("validation", "test")] * 2


def test_the_best_round_is_the_one_whose_weights_scored_best(make_study):
    # What is scored in round r stood after round r - 1.
    after = chosen(make_study, 1, 4, 8, 6, 7)
    assert [replace(state.best, value=round(state.best.value, 6)) for state in after] == [
        Best(0, 0.1), Best(1, 0.4), Best(2, 0.8), Best(2, 0.8, 1), Best(2, 0.8, 2),
    ]  # fmt: skip
    assert after[-1].closing


def test_a_study_without_a_gain_for_too_long_stops_early_and_closes(make_study):
    after = chosen(make_study, 1, 4, 8, 6, 7, 9, 9, 9, patience=2)
    assert [(state.round, state.closing) for state in after] == [
        (1, False), (2, False), (3, False), (4, False), (5, False), (6, True),
    ]  # fmt: skip
    # 5 rounds moved the weights by 1 each; the closing one scored them and moved nothing
    assert after[-1].weights["w"].tolist() == [5.0, 0.0]


def test_a_study_that_stopped_early_is_not_taken_up_again_by_a_resume(make_study):
    whole = chosen(make_study, 1, 4, 8, 6, 7, 9, 9, 9, patience=2)
    (last,) = chosen(make_study, 1, 4, 8, 6, 7, 9, 9, 9, patience=2, start=whole[-2])
    assert (last.round, last.closing) == (6, True)


def test_a_gain_under_the_least_one_is_none(make_study):
    after = chosen(make_study, 4, 5, 6, 7, min_gain=0.15)
    # 0.5 is 0.1 more than 0.4, 0.6 is 0.2 more, 0.7 is 0.1 more than 0.6
    assert [state.best.round for state in after] == [0, 0, 2, 2]


def test_a_loss_is_better_when_smaller(make_study):
    after = chosen(make_study, 4, 5, 6, metric="loss")
    assert [state.best.value for state in after] == [0.0, 0.0, 0.0]
    assert [state.best.num_worse_since for state in after] == [0, 1, 2]
