"""Waiting for people before round 1, with sites that are scripts and a clock that only pauses move."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from common import wire
from common.errors import QuorumNotMet
from common.weights import TensorSpec, digest
from server.enrolment import approvals
from server.enrolment.cohort import enrol
from server.rounds.failures import NOTICED_BY_SERVER
from server.rounds.sites import Deadline, Reply
from server.state import Approvals

WEIGHTS = {"w": np.zeros(2, np.float32)}
LAYOUT = {"w": TensorSpec(shape=(2,), dtype="float32")}
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR, DAY = 3600.0, 86400.0


@pytest.fixture(autouse=True)
def _propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


@dataclass
class People:
    """Sites by name, each with what happens there: (seconds after the start, a decision or "away")."""

    script: dict[str, list[tuple[float, str]]]
    reason: str = ""
    now_s: float = 0.0
    asked: list[tuple[str, wire.Plan]] = field(default_factory=list)
    saved: list[Approvals | None] = field(default_factory=list)

    def pause(self, seconds: float) -> None:
        self.now_s += seconds

    def clock(self) -> datetime:
        return START + timedelta(seconds=self.now_s)

    def state(self, site: str) -> str:
        return [state for after_s, state in self.script[site] if after_s <= self.now_s][-1]

    def online(self) -> set[str]:
        return {site for site in self.script if self.state(site) != "away"}

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for site, plan in plans.items():
            self.asked.append((site, plan))
            yield Reply(site, self.answer(plan, self.state(site)), 0.1)
            if deadline.seconds == 0:
                return
        if any(isinstance(plan, wire.ApprovalPlan) for plan in plans.values()):
            self.now_s += min(approvals.HOLD_S, deadline.seconds)

    def answer(self, plan: wire.Plan, state: str) -> wire.Answer:
        match state:
            case "restarting":
                return wire.Failure(
                    plan_id=plan.plan_id,
                    site=plan.site,
                    error="unreachable",
                    case=NOTICED_BY_SERVER,
                    advice="-",
                )
            case "broken":
                if isinstance(plan, wire.ApprovalPlan):
                    return approval(plan, "yes")
                return wire.Failure(
                    plan_id=plan.plan_id, site=plan.site, error="data", case="1a2b", advice="bad"
                )
            case "forbidden":
                return wire.Failure(
                    plan_id=plan.plan_id,
                    site=plan.site,
                    error="policy",
                    case="",
                    advice="not agreed",
                    reason="heads",
                )
            case "yes" if isinstance(plan, wire.EnrolPlan):
                return wire.Enrolment(
                    plan_id=plan.plan_id, site=plan.site, layout=LAYOUT, weights_digest=digest(WEIGHTS),
                    frozen_digest="b", preprocessing={}, train_counts=(2, 1, 1), validation_counts=(1, 1, 1),
                    test_counts=(1, 1, 1), device="cpu", weights=WEIGHTS if plan.want_weights else {},
                )  # fmt: skip
        return approval(plan, state, self.reason if state in ("no", "closed") else "")

    def enrol(self, study, before: Approvals | None = None):
        record = approvals.WaitingRecord(before, self.saved.append)
        return enrol(study, self, None, pause=self.pause, people=record, clock=self.clock)


def approval(plan: wire.Plan, decision: str, reason: str = "") -> wire.ApprovalAnswer:
    return wire.ApprovalAnswer.model_validate(
        {"plan_id": plan.plan_id, "site": plan.site, "decision": decision, "reason": reason}
    )


@pytest.fixture
def study(make_study):
    """Both sites have to take part."""
    return make_study(deadlines={"repeat_after_s": 0})


@pytest.fixture
def one_is_enough(make_study):
    return make_study(sites={"train": ("north", "south"), "required": 1}, deadlines={"repeat_after_s": 0})


def test_a_study_waits_for_a_yes_and_then_begins_with_all(study, caplog):
    people = People({"north": [(0, "undecided"), (5 * HOUR, "yes")], "south": [(0, "yes")]})
    assert list(people.enrol(study).enrolments) == ["north", "south"]
    assert (
        "waiting for people to approve study tiny at north (there: `./site.sh approve tiny`)" in caplog.text
    )
    assert "the study waits until 2026-03-08 12:00 UTC" in caplog.text
    assert "north: the study is approved there" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_the_log_mentions_the_waiting_at_growing_intervals(study, caplog):
    people = People({"north": [(0, "undecided"), (6 * DAY, "yes")], "south": [(0, "yes")]})
    people.enrol(study)
    # after 1, 2, 4, ... 1024 minutes, which is 34.1 hours together, then once a day: 11 and 4 times
    reminders = [line for line in caplog.messages if line.startswith("still waiting for approval: ")]
    assert len(reminders) == 15
    assert reminders[0] == (
        "still waiting for approval: north since 2026-03-01 12:00 UTC; taking part: south; "
        "the study waits until 2026-03-08 12:00 UTC"
    )


def test_there_is_no_reminder_of_a_limit_that_is_past(make_study, caplog):
    people = People({"north": [(0, "undecided")], "south": [(0, "yes")]})
    with pytest.raises(QuorumNotMet):  # the first reminder would come after a minute, too
        people.enrol(make_study(deadlines={"approval_s": 60, "repeat_after_s": 0}))
    assert "still waiting" not in caplog.text


def test_a_week_of_waiting_costs_few_messages_and_each_is_the_same_question(study):
    people = People({"north": [(0, "undecided"), (7 * DAY - 60, "yes")], "south": [(0, "yes")]})
    people.enrol(study)
    questions = [plan for _, plan in people.asked if isinstance(plan, wire.ApprovalPlan)]
    # held for 30 s and two seconds between two: 604,740 / 32
    assert len(questions) == pytest.approx(18_898, abs=2)
    assert len({plan.plan_id for plan in questions}) == 1
    assert {plan.hold_s for plan in questions} == {30.0}


def test_who_has_not_answered_in_time_is_named(study):
    people = People({"north": [(0, "undecided")], "south": [(0, "yes")]})
    with pytest.raises(
        QuorumNotMet,
        match=r"1 of 2 training sites can take part, 2 are required. north: no person there answered within 7 days "
        r"\(deadlines.approval_s\); asked since 2026-03-01 12:00 UTC",
    ):
        people.enrol(study)
    assert 7 * DAY <= people.now_s < 7 * DAY + 60
    assert people.saved[-1] is None


def test_without_a_limit_a_study_waits_as_long_as_it_takes(make_study):
    study = make_study(deadlines={"approval_s": None, "repeat_after_s": 0})
    people = People({"north": [(0, "undecided"), (30 * DAY, "yes")], "south": [(0, "yes")]})
    assert list(people.enrol(study).enrolments) == ["north", "south"]
    assert people.saved[0] is not None
    assert people.saved[0].until is None


def test_a_study_that_waits_for_nobody_says_so_at_once(make_study, caplog):
    people = People({"north": [(0, "undecided")], "south": [(0, "yes")]})
    with pytest.raises(
        QuorumNotMet, match=r"north: waits for a person there, and the study waits for no one"
    ):
        people.enrol(make_study(deadlines={"approval_s": 0}))
    assert people.now_s == 0
    assert "waiting for people" not in caplog.text


def test_with_a_quorum_the_others_still_have_their_time(one_is_enough, caplog):
    people = People({"north": [(0, "yes")], "south": [(0, "undecided"), (2 * DAY, "yes")]})
    assert list(people.enrol(one_is_enough).enrolments) == ["north", "south"]
    silent = People({"north": [(0, "yes")], "south": [(0, "undecided")]})
    assert list(silent.enrol(one_is_enough).enrolments) == ["north"]
    assert silent.now_s >= 7 * DAY
    assert "south cannot take part: no person there answered within 7 days" in caplog.text


def test_a_study_can_begin_some_time_after_its_quorum(make_study, caplog):
    study = make_study(
        sites={"train": ("north", "south", "west"), "required": 2},
        deadlines={"approval_after_quorum_s": HOUR, "repeat_after_s": 0},
    )
    people = People(
        {"north": [(0, "yes")], "south": [(0, "undecided"), (DAY, "yes")], "west": [(0, "undecided")]}
    )
    assert list(people.enrol(study).enrolments) == ["north", "south"]
    assert DAY + HOUR <= people.now_s < DAY + HOUR + 120
    before, after = START + timedelta(days=7), START + timedelta(seconds=DAY + HOUR)
    limits = list(dict.fromkeys(state.until for state in people.saved if state is not None))
    assert limits[0] == before
    assert abs((limits[1] - after).total_seconds()) < 120  # what `status` shows
    assert "west cannot take part: no person there answered within 60 min after the quorum" in caplog.text


def test_an_evaluate_site_is_waited_for_and_is_no_part_of_the_quorum(make_study):
    study = make_study(
        sites={"train": ("north",), "evaluate": ("unseen",)},
        deadlines={"approval_s": 2 * HOUR, "repeat_after_s": 0},
    )
    people = People({"north": [(0, "yes")], "unseen": [(0, "undecided"), (HOUR, "yes")]})
    assert list(people.enrol(study).enrolments) == ["north", "unseen"]
    silent = People({"north": [(0, "yes")], "unseen": [(0, "undecided")]})
    assert list(silent.enrol(study).enrolments) == ["north"]


def test_a_no_is_one_calm_line_with_the_reason_that_was_given(one_is_enough, caplog):
    people = People(
        {"north": [(0, "yes")], "south": [(0, "undecided"), (60, "no")]}, "the ethics vote is missing"
    )
    assert list(people.enrol(one_is_enough).enrolments) == ["north"]
    said = [record for record in caplog.records if "ethics vote" in record.message]
    assert said[0].message == "south: refused by a person there: the ethics vote is missing"
    assert said[0].levelno == logging.INFO
    assert "case" not in caplog.text
    assert people.now_s < 120  # nobody is left to wait for


def test_a_study_that_can_no_longer_have_its_quorum_does_not_wait_for_the_rest(study):
    people = People({"north": [(0, "undecided"), (60, "no")], "south": [(0, "undecided")]})
    with pytest.raises(
        QuorumNotMet, match=r"0 of 2 .* north: refused by a person there; south: no answer yet"
    ):
        people.enrol(study)
    # 30 s held and a pause of 2, twice; the third question ends with the no, and a pause
    assert people.now_s == pytest.approx(66, abs=1)


def test_a_study_that_needs_an_evaluate_site_that_refused_does_not_wait_for_the_rest(make_study):
    study = make_study(sites={"train": ("north",), "evaluate": ("unseen",), "evaluate_missing": "fail"})
    people = People({"north": [(0, "undecided")], "unseen": [(0, "undecided"), (60, "no")]})
    with pytest.raises(QuorumNotMet, match=r"unseen: refused by a person there"):
        people.enrol(study)
    assert people.now_s < 120


def test_a_no_before_the_waiting_ends_the_study_with_the_reason_once(study, caplog):
    people = People({"north": [(0, "no")], "south": [(0, "yes")]}, "not now")
    with pytest.raises(QuorumNotMet, match=r"north: refused by a person there: not now$"):
        people.enrol(study)
    assert "not now" not in caplog.text


@pytest.mark.parametrize("state", ["restarting", "away"])
def test_a_site_that_is_away_while_it_is_undecided_is_asked_again(study, state):
    happened = [(0.0, "undecided"), (100.0, state), (900.0, "undecided"), (1000.0, "yes")]
    people = People({"north": happened, "south": [(0, "yes")]})
    assert list(people.enrol(study).enrolments) == ["north", "south"]


def test_a_site_that_cannot_set_up_what_it_approved_has_failed(study):
    people = People({"north": [(0, "undecided"), (60, "broken")], "south": [(0, "yes")]})
    with pytest.raises(QuorumNotMet, match=r"north: bad \(data, case 1a2b in its log\)"):
        people.enrol(study)


def test_a_policy_that_was_changed_meanwhile_ends_the_waiting(study, caplog):
    people = People({"north": [(0, "undecided"), (60, "forbidden")], "south": [(0, "yes")]})
    with pytest.raises(QuorumNotMet, match=r"north: not agreed: heads \(policy\)"):
        people.enrol(study)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_closed_site_is_waited_for_until_it_opens(study, caplog):
    happened = [(0.0, "undecided"), (60.0, "closed"), (7 * HOUR, "yes")]
    people = People({"north": happened, "south": [(0, "yes")]}, "this site takes plans again at 19:00")
    assert list(people.enrol(study).enrolments) == ["north", "south"]
    assert "north: the study is approved there; this site takes plans again at 19:00" in caplog.text
    assert "north: open again" in caplog.text


def test_after_a_long_wait_all_enrol_once_more(study):
    quick = People({"north": [(0, "undecided"), (60, "yes")], "south": [(0, "yes")]})
    quick.enrol(study)
    slow = People({"north": [(0, "undecided"), (2 * HOUR, "yes")], "south": [(0, "yes")]})
    slow.enrol(study)
    for people, times in ((quick, 1), (slow, 2)):
        asked = [site for site, plan in people.asked if isinstance(plan, wire.EnrolPlan)]
        assert asked.count("south") == times


def test_an_approval_that_was_taken_back_before_the_set_up_is_waited_for_again(study, caplog):
    class Hesitant(People):
        def answer(self, plan: wire.Plan, state: str) -> wire.Answer:
            hesitates = plan.site == "north" and isinstance(plan, wire.EnrolPlan) and self.now_s < HOUR
            return approval(plan, "undecided") if hesitates else super().answer(plan, state)

    people = Hesitant(
        {
            "north": [(0, "undecided"), (60, "yes"), (200, "undecided"), (2 * HOUR, "yes")],
            "south": [(0, "yes")],
        }
    )
    assert list(people.enrol(study).enrolments) == ["north", "south"]
    assert "north: the approval was taken back; still waiting for north" in caplog.text


def test_the_status_shows_who_is_waited_for_and_a_restarted_server_goes_on_waiting(study):
    people = People({"north": [(0, "undecided")], "south": [(0, "undecided"), (60, "yes")]})
    with pytest.raises(QuorumNotMet):
        people.enrol(study)
    first, agreed, *_ = people.saved
    assert first is not None
    assert agreed is not None
    assert [state.answer for state in first.sites.values()] == ["undecided", "undecided"]
    assert [state.answer for state in agreed.sites.values()] == ["undecided", "yes"]
    later = People({"north": [(0, "undecided")], "south": [(0, "yes")]}, now_s=6 * DAY)
    with pytest.raises(
        QuorumNotMet, match=r"no person there answered within 7 days.*asked since 2026-03-01 12:00 UTC"
    ):
        later.enrol(study, before=agreed)
    assert later.now_s < 7 * DAY + 60  # the seven days count from the first question
