"""Heads that travel, at the server: which are passed on, and why the others are not."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from common import wire
from common.config import StudyConfig
from common.heads import under
from common.weights import TensorSpec
from server.heads import travel
from server.heads.calls import HeadCalls
from server.rounds.sites import Deadline, Reply
from server.state import Cohort, RoundState

MakeStudy = Callable[..., StudyConfig]
MEANS = {"shift": np.zeros(2), "scale": np.ones(2), "weights": np.ones((2, 3)), "bias": np.zeros(3)}


@dataclass
class Answering:
    """Sites that answer a plan with these fields; a site that is not named is silent."""

    fields: Mapping[str, Mapping[str, Any]]

    def online(self) -> set[str]:
        return set(self.fields)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for site, fields in self.fields.items():
            plan = plans[site]
            assert isinstance(plan, wire.HeadPlan)
            whole = {
                "plan_id": plan.plan_id, "site": site, "round": plan.round, "step": plan.step.kind,
                "train_counts": (2, 1, 1), "seconds": 0.1, "arrays": {}, **fields,
            }  # fmt: skip
            yield Reply(site, wire.HeadAnswer.model_validate(whole), 0.1)


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    local = [{"kind": "nearest_mean", "name": "mean", "travels": True}, {"kind": "knn"}]
    return make_study(sites={"train": ("north", "south"), "required": 1}, heads={"local": local})


def collected(study: StudyConfig, **fields: Mapping[str, Any]) -> travel.Travelled:
    layout = {"w": TensorSpec(shape=(2,), dtype="float32")}
    enrolments = {
        site: wire.Enrolment(
            plan_id="e", site=site, layout=layout, weights_digest="", frozen_digest="", preprocessing={},
            train_counts=(2, 1, 1), validation_counts=(0, 0, 0), test_counts=(1, 1, 1), device="cpu", weights={},
        )
        for site in ("north", "south")
    }  # fmt: skip
    weights = {"w": np.zeros(2, np.float32)}
    cohort = Cohort(enrolments, weights)
    state = RoundState(study.rounds, weights, layout, {})
    calls = HeadCalls(study, Answering(fields), cohort, state)
    return travel.collect(study, calls, ["north", "south"])


def of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {"arrays": under("fitted/nearest_mean/mean", dict(arrays))}


def test_every_training_sites_head_is_passed_on_under_its_owners_name(study: StudyConfig) -> None:
    found = collected(study, north=of(MEANS), south=of(MEANS))
    assert [head.title for head in found.heads] == ["local.mean@north", "local.mean@south"]
    assert sorted(found.arrays)[:4] == [
        f"head/local.mean@north/{name}" for name in ("bias", "scale", "shift", "weights")
    ]
    assert found.lacking == {}


def test_a_study_without_such_heads_sends_nothing(make_study: MakeStudy) -> None:
    assert collected(make_study(heads={"local": [{"kind": "knn"}]})) == travel.Travelled()


PROBLEMS = {
    "may_not_leave": "south's policy does not let a nearest_mean leave; south would have to list it in "
    "policy.heads_may_leave, or take a kind that is made of sums",
    "too_large": "it has more than 256 MiB; fewer principal components (`pca`) or trees make it smaller",
    "one_class": "south could not fit it (one class)",
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_head_that_stays_is_named_with_the_reason(study: StudyConfig, problem: str) -> None:
    stays = {"results": ({"title": "local.mean@south", "problem": problem},)}
    found = collected(study, north=of(MEANS), south=stays)
    assert [head.title for head in found.heads] == ["local.mean@north"]
    assert found.lacking == {"local.mean@south": PROBLEMS[problem]}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({}, "shift is missing"),
        (
            {**MEANS, "weights": np.ones((2, 4))},
            r"weights of head local.mean is [2, 4], expected [2, 3]",
        ),
        ({**MEANS, "code": np.ones(1)}, "the head has 1 array(s) that a nearest_mean does not have"),
    ],
)
def test_what_is_no_such_head_is_not_passed_on(study: StudyConfig, arrays: Any, reason: str) -> None:
    found = collected(study, north=of(MEANS), south=of(arrays))
    assert found.lacking == {"local.mean@south": f"what south sent is no such head: {reason}"}


def test_a_site_that_is_silent_or_speaks_of_other_heads_has_none(study: StudyConfig) -> None:
    other = {"results": ({"title": "local.knn@south", "problem": "failed"},)}
    found = collected(study, south=other)
    assert found.heads == ()
    assert found.lacking == {
        "local.mean@north": f"north did not send it (travel: no answer within {study.deadlines.round_s:.0f} s)",
        "local.mean@south": "south did not send it (travel: it answered about heads that it was not asked for)",
    }


def test_heads_that_are_too_large_together_are_left_out(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2 + 2 + 6 + 3 numbers of 8 bytes each
    monkeypatch.setattr(travel, "LARGEST_TOGETHER", 2 * 13 * 8 - 1)
    found = collected(study, north=of(MEANS), south=of(MEANS))
    assert [head.title for head in found.heads] == ["local.mean@north"]
    assert found.lacking["local.mean@south"].startswith("with those before it, the heads have more than")
