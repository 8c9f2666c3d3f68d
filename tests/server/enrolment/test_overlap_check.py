"""The check for shared images: who is asked, who is sent which hashes, and when the study stops."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from common import wire
from common.config import OverlapConfig, StudyConfig
from common.errors import SiteDataError
from common.weights import TensorSpec
from server.enrolment import overlap, overlap_check
from server.enrolment.overlap import Pair
from server.rounds.sites import Deadline, Reply
from server.state import Cohort

Answer = Callable[[wire.OverlapPlan], wire.Answer]

A, B, C, D = (letter * 32 for letter in "abcd")
"""Hashes of four images. A site has two: the first is its training image, the second its test image."""


@pytest.fixture(autouse=True)
def _propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


@dataclass
class Answering:
    """Sites that give these answers to every request, in the order of the list."""

    answers: dict[str, list[Answer]]
    late: frozenset[str] = frozenset()
    plans: list[dict[str, wire.OverlapPlan]] = field(default_factory=list)

    def online(self) -> set[str]:
        return set(self.answers)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        requests = {site: plan for site, plan in plans.items() if isinstance(plan, wire.OverlapPlan)}
        self.plans.append(requests)
        for site, plan in requests.items():
            for answer in self.answers[site]:
                yield Reply(site, answer(plan), 0.1, late=site in self.late)


def images(*hashes: str) -> Answer:
    return lambda plan: wire.OverlapAnswer(
        plan_id=plan.plan_id, site=plan.site, check="0" * 16, same=hashes, similar=hashes
    )


def failure(plan: wire.OverlapPlan) -> wire.Answer:
    return wire.Failure(
        plan_id=plan.plan_id, site=plan.site, error="policy", case="1a2b", advice="not allowed"
    )


def to_another_plan(plan: wire.OverlapPlan) -> wire.Answer:
    return images(C, D)(plan.model_copy(update={"plan_id": "other"}))


COHORT = Cohort(
    {
        name: wire.Enrolment(
            plan_id="e", site=name, layout={"w": TensorSpec(shape=(1,), dtype="float32")}, weights_digest="a",
            frozen_digest="b", preprocessing={}, device="cpu", weights={},
            train_counts=(0, 0, 0) if name == "unseen" else (1, 0, 0),
            validation_counts=(0, 0, 0), test_counts=(1, 1, 0) if name == "unseen" else (1, 0, 0),
        )
        for name in ("north", "unseen")
    },
    {},
)  # fmt: skip


@pytest.fixture
def comparing(make_study) -> StudyConfig:
    return make_study(
        sites={"train": ("north",), "evaluate": ("unseen",)},
        overlap=OverlapConfig(),
        deadlines={"enrol_s": 60},
    )


def checked(study: StudyConfig, sites: Answering, run_dir) -> overlap.Overlap:
    overlap_check.compare(study, sites, COHORT, run_dir)
    result = overlap.load(run_dir)
    assert result is not None
    return result


def test_without_an_overlap_section_no_site_is_asked(comparing, tmp_path):
    sites = Answering({"north": [images(A, B)], "unseen": [images(C, D)]})
    overlap_check.compare(comparing.model_copy(update={"overlap": None}), sites, COHORT, tmp_path)
    assert sites.plans == []
    assert overlap.load(tmp_path) is None


def test_sites_without_a_shared_image_are_asked_once(comparing, tmp_path, caplog):
    sites = Answering({"north": [images(A, B)], "unseen": [images(C, D)]})
    result = checked(comparing, sites, tmp_path)
    assert result.compared == {"north": 2, "unseen": 2}
    assert result.pairs == ()
    assert [set(plans) for plans in sites.plans] == [{"north", "unseen"}]
    assert "4 images of 2 sites were compared: none that unseen scores is at a training site" in caplog.text


def test_a_shared_image_stops_the_study_after_its_evaluate_site_got_the_hash(comparing, tmp_path):
    sites = Answering({"north": [images(A, B)], "unseen": [images(B, C)]})
    with pytest.raises(SiteDataError, match="unseen shares 1 image with the training site north") as stopped:
        overlap_check.compare(comparing, sites, COHORT, tmp_path)
    assert "overlap.csv" in str(stopped.value)
    assert "overlap.on_shared: warn" in str(stopped.value)
    first, second = sites.plans
    assert {site: plan.shared for site, plan in first.items()} == {"north": (), "unseen": ()}
    assert {site: plan.shared for site, plan in second.items()} == {"unseen": (B,)}
    saved = overlap.load(tmp_path)
    assert saved is not None
    assert saved.pairs == (Pair(one="north", other="unseen", same=1, similar=1),)


def test_a_study_that_only_warns_goes_on(comparing, tmp_path, caplog):
    study = comparing.model_copy(update={"overlap": OverlapConfig(on_shared="warn")})
    checked(study, Answering({"north": [images(A, B)], "unseen": [images(B, C)]}), tmp_path)
    assert "with the training site north; the study goes on, and its report says so" in caplog.text


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], "no answer within 60 s"),
        ([failure], "not allowed (policy, case 1a2b in its log)"),
        ([to_another_plan], "its answer is not to this request"),
        # The first answer counts: a second one replaces neither hashes nor a reason.
        ([failure, images(C, D)], "not allowed (policy, case 1a2b in its log)"),
    ],
)
def test_a_site_without_hashes_is_not_compared_and_the_reason_is_saved(comparing, tmp_path, answers, reason):
    study = comparing.model_copy(update={"overlap": OverlapConfig(on_shared="warn")})
    result = checked(study, Answering({"north": [images(A, B)], "unseen": answers}), tmp_path)
    assert result.not_compared == {"unseen": reason}
    with pytest.raises(SiteDataError, match="Give every site the same overlap_secret"):
        checked(comparing, Answering({"north": [images(A, B)], "unseen": answers}), tmp_path)


def test_a_failure_after_the_hashes_does_not_count(comparing, tmp_path):
    result = checked(
        comparing, Answering({"north": [images(A, B)], "unseen": [images(C, D), failure]}), tmp_path
    )
    assert result.not_compared == {}


def test_a_late_answer_is_none(comparing, tmp_path):
    study = comparing.model_copy(update={"overlap": OverlapConfig(on_shared="warn")})
    sites = Answering({"north": [images(A, B)], "unseen": [images(C, D)]}, late=frozenset({"unseen"}))
    assert checked(study, sites, tmp_path).not_compared == {"unseen": "no answer within 60 s"}


def test_a_site_that_does_not_take_the_list_of_its_shared_images_is_logged(comparing, tmp_path, caplog):
    def once(plan: wire.OverlapPlan) -> wire.Answer:
        return failure(plan) if plan.shared else images(B, C)(plan)

    study = comparing.model_copy(update={"overlap": OverlapConfig(on_shared="warn")})
    checked(study, Answering({"north": [images(A, B)], "unseen": [once]}), tmp_path)
    assert (
        "unseen did not receive the list of its shared images: not allowed (policy, case 1a2b in its log)"
        in caplog.text
    )
