"""Reasons of sites that cannot take part: each is that of the last attempt to reach them."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from common import wire
from common.errors import QuorumNotMet
from common.weights import TensorSpec, digest
from server.enrolment.cohort import enrol, wait_for_sites
from server.rounds.failures import NOTICED_BY_SERVER
from server.rounds.sites import Deadline, Reply

WEIGHTS = {"w": np.zeros(2, np.float32)}
LAYOUT = {"w": TensorSpec(shape=(2,), dtype="float32")}

Answer = Callable[[wire.EnrolPlan], wire.Answer]


@pytest.fixture(autouse=True)
def _propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)


@dataclass
class Scripted:
    """Sites with one list of answers an attempt; `late` names (site, attempt) pairs whose answers are late."""

    script: dict[str, list[list[Answer]]]
    late: tuple[tuple[str, int], ...] = ()
    attempt: int = 0

    def online(self) -> set[str]:
        return set(self.script)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        some = next(iter(plans.values()))
        for site, attempts in self.script.items():
            for answer in attempts[self.attempt] if self.attempt < len(attempts) else []:
                plan = plans.get(site, some.model_copy(update={"site": site}))
                assert isinstance(plan, wire.EnrolPlan)
                yield Reply(site, answer(plan), 0.1, late=(site, self.attempt) in self.late)
        self.attempt += 1


def enrolment(plan: wire.EnrolPlan) -> wire.Enrolment:
    return wire.Enrolment(
        plan_id=plan.plan_id, site=plan.site, layout=LAYOUT, weights_digest=digest(WEIGHTS), frozen_digest="b",
        preprocessing={}, train_counts=(2, 1, 1), validation_counts=(1, 1, 1), test_counts=(1, 1, 1), device="cpu",
        weights=WEIGHTS if plan.want_weights else {},
    )  # fmt: skip


def unreachable(plan: wire.EnrolPlan) -> wire.Failure:
    return wire.Failure(
        plan_id=plan.plan_id,
        site=plan.site,
        error="unreachable",
        case=NOTICED_BY_SERVER,
        advice="no connection",
    )


@pytest.fixture
def two(make_study):
    """A study of north and south that goes on with one of them; south may be asked twice."""
    return make_study(
        sites={"train": ("north", "south"), "required": 1},
        deadlines={"enrol_s": 60, "repeat_after_s": 0, "repeats": 1},
    )


def test_a_site_that_is_silent_in_the_second_attempt_gets_the_reason_of_the_second(two, caplog):
    sites = Scripted({"north": [[enrolment]], "south": [[unreachable], []]})
    cohort = enrol(two, sites, None, pause=lambda _: None)
    assert list(cohort.enrolments) == ["north"]
    assert "south cannot take part: no answer within 60 s" in caplog.text
    assert "south cannot take part: no connection" not in caplog.text


def test_a_site_that_enrols_in_the_second_attempt_takes_part(two):
    sites = Scripted({"north": [[enrolment]], "south": [[unreachable], [enrolment]]})
    assert list(enrol(two, sites, None, pause=lambda _: None).enrolments) == ["north", "south"]


def test_a_failure_of_an_earlier_attempt_does_not_undo_an_enrolment(two):
    sites = Scripted({"north": [[enrolment]], "south": [[unreachable], [enrolment, unreachable]]})
    assert list(enrol(two, sites, None, pause=lambda _: None).enrolments) == ["north", "south"]


def test_a_late_enrolment_counts_and_a_late_failure_is_no_answer_to_the_second_attempt(two, caplog):
    script: dict[str, list[list[Answer]]] = {"north": [[enrolment]], "south": [[unreachable], [enrolment]]}
    late = Scripted(script, late=(("south", 1),))
    assert list(enrol(two, late, None, pause=lambda _: None).enrolments) == ["north", "south"]
    again = Scripted(script | {"south": [[unreachable], [unreachable]]}, late=(("south", 1),))
    enrol(two, again, None, pause=lambda _: None)
    assert "south cannot take part: no answer within 60 s" in caplog.text


def test_an_answer_of_another_kind_is_no_enrolment(two, caplog):
    def other(plan: wire.EnrolPlan) -> wire.Answer:
        return wire.OverlapAnswer(plan_id=plan.plan_id, site=plan.site, check="0" * 16, same=(), similar=())

    assert list(enrol(two, Scripted({"north": [[enrolment]], "south": [[other]]}), None).enrolments) == [
        "north"
    ]
    assert "its answer is of kind overlap_answer, expected an enrolment" in caplog.text


# --- sites that do not take part -------------------------------------------------------------------


def refusal(plan: wire.EnrolPlan) -> wire.Failure:
    return wire.Failure(plan_id=plan.plan_id, site=plan.site, error="data", case="1a2b", advice="no split")


@pytest.fixture
def make_with_unseen(make_study):
    """A study of north, south and unseen that goes on with one of the first two."""
    return lambda missing: make_study(
        sites={
            "train": ("north", "south"), "evaluate": ("unseen",), "required": 1, "evaluate_missing": missing,
        },
        deadlines={"enrol_s": 60, "repeat_after_s": 0, "repeats": 0},
    )  # fmt: skip


def test_every_absent_site_is_in_the_cohort_with_its_reason(make_with_unseen):
    sites = Scripted({"north": [[enrolment]], "unseen": [[refusal]]})  # south does not connect
    cohort = enrol(make_with_unseen("incomplete"), sites, None, pause=lambda _: None)
    assert list(cohort.enrolments) == ["north"]
    assert cohort.absent == {
        "south": "it did not connect within 60 s",
        "unseen": "no split (data, case 1a2b in its log)",
    }
    whole = Scripted({name: [[enrolment]] for name in ("north", "south", "unseen")})
    assert enrol(make_with_unseen("incomplete"), whole, None).absent == {}


def test_a_site_without_a_test_image_cannot_be_one_that_only_scores(make_with_unseen):
    def untested(plan: wire.EnrolPlan) -> wire.Enrolment:
        return enrolment(plan).model_copy(update={"validation_counts": (0, 0, 0), "test_counts": (0, 0, 0)})

    def hidden(plan: wire.EnrolPlan) -> wire.Enrolment:
        return untested(plan).model_copy(update={"withheld": True})

    for answer, reason in (
        (untested, "it has no test or validation images of the study's classes"),
        (hidden, "it has no test or validation images that its policy lets be counted"),
    ):
        script: dict[str, list[list[Answer]]] = {
            "north": [[enrolment]],
            "south": [[untested]],
            "unseen": [[answer]],
        }
        cohort = enrol(make_with_unseen("incomplete"), Scripted(script), None)
        assert cohort.absent == {"unseen": reason}  # a training site may have none


def test_a_study_that_needs_its_evaluate_site_does_not_begin_without(make_with_unseen):
    sites = Scripted({"north": [[enrolment]], "south": [[enrolment]], "unseen": [[refusal]]})
    with pytest.raises(QuorumNotMet, match="unseen cannot score the model: no split"):
        enrol(make_with_unseen("fail"), sites, None)
    again = Scripted({"north": [[enrolment]], "south": [[enrolment]], "unseen": [[refusal]]})
    assert "unseen" in enrol(make_with_unseen("pass"), again, None).absent


def test_a_study_that_needs_its_evaluate_site_does_not_wait_for_the_others_work(make_with_unseen):
    study = make_with_unseen("fail")
    study = study.model_copy(update={"deadlines": study.deadlines.model_copy(update={"enrol_s": 0.001})})
    sites = Scripted({"north": [[enrolment]], "south": [[enrolment]]})
    with pytest.raises(QuorumNotMet, match=r"unseen cannot score the model: it did not connect"):
        wait_for_sites(study, sites, pause=lambda _: None)


def test_too_few_sites_are_named_with_those_that_did_not_connect(make_with_unseen):
    with pytest.raises(QuorumNotMet, match=r"north: no split .*; south: it did not connect within 60 s"):
        enrol(make_with_unseen("incomplete"), Scripted({"north": [[refusal]]}), None)
