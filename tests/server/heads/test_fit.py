"""Fitting a study's heads: when it is due, and what a site or a head that drops out costs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from common import wire
from common.errors import QuorumNotMet
from common.heads.result import HeadResult
from common.metrics import count
from common.weights import TensorSpec
from common.wire import head_steps
from server.heads import fit
from server.rounds.sites import Deadline, Reply
from server.state import Cohort, RefusalStreak, RoundState

Answer = Callable[[wire.HeadPlan], wire.Answer]

SCORE = count(np.eye(3), np.array([0, 1, 2]), loss_sum=0.0)
LAYOUT = {"w": TensorSpec(shape=(2,), dtype="float32")}
STATE = RoundState(4, {"w": np.zeros(2, np.float32)}, LAYOUT, {})
NAMES = ("north", "south")


@dataclass
class Answering:
    """Sites that are functions from plan to answer; None is silence."""

    answers: Mapping[str, Callable[[wire.HeadPlan], wire.Answer | None]]

    def online(self) -> set[str]:
        return set(self.answers)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        for site, plan in plans.items():
            assert isinstance(plan, wire.HeadPlan)
            answer = self.answers[site](plan)
            if answer is not None:
                yield Reply(site, answer, 0.1)


def site(*images: float, width: int = 1, silent_in: str = "", confusion=SCORE):
    """One image of each class, with one feature; the site scores the softmax and every head it is sent."""
    rows_ND = np.repeat(np.array(images, np.float64)[:, None], width, axis=1)

    def answer(plan: wire.HeadPlan) -> wire.Answer | None:
        arrays, results = {}, ()
        match plan.step:
            case step if step.kind == silent_in:
                return None
            case head_steps.StatisticsStep(views=(view,)):
                arrays = {
                    f"statistics/{view.name}/sums": rows_ND,
                    f"statistics/{view.name}/squares": rows_ND**2,
                }
            case head_steps.ScoreStep(heads=heads):
                titles = ["softmax", *(head.title for head in heads)]
                results = tuple(HeadResult(title=title, score=confusion) for title in titles)
        return wire.HeadAnswer(
            plan_id=plan.plan_id, site=plan.site, round=plan.round, step=plan.step.kind, results=results,
            train_counts=(1, 1, 1) if arrays else (0, 0, 0), seconds=0.1, arrays=arrays,
        )  # fmt: skip

    return answer


def fitted(study, north, south, state: RoundState = STATE) -> fit.Fitted:
    enrolments = {
        name: wire.Enrolment(
            plan_id="e", site=name, layout=LAYOUT, weights_digest="a", frozen_digest="b", preprocessing={},
            train_counts=(1, 1, 1), validation_counts=(1, 1, 1), test_counts=(1, 1, 1), device="cpu", weights={},
        )
        for name in NAMES
    }  # fmt: skip
    return fit.fit(
        study, Answering({"north": north, "south": south}), Cohort(enrolments, STATE.weights), state
    )


@pytest.fixture
def make_heads(make_study):
    """A study of north and south with a nearest mean on features as they are."""
    listed = [{"kind": "nearest_mean", "scale": False}]

    def make(required: int = 1, **heads):
        return make_study(
            sites={"train": NAMES, "required": required},
            heads={"federated": listed, **heads},
            deadlines={"round_s": 60},
        )

    return make


# --- due -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "number", "closing", "expected"),
    [
        (None, 2, False, False),
        (2, 1, False, False),
        (2, 2, False, True),
        (2, 4, False, True),
        # The last of six rounds has its heads after the closing scores, and not twice.
        (2, 6, False, False),
        (2, 7, True, True),
        (None, 7, True, True),
    ],
)
def test_heads_are_due_every_few_rounds_and_after_the_closing_scores(
    make_study, every, number, closing, expected
):
    study = make_study(rounds=6, heads={"every": every, "federated": [{"kind": "lda"}]})
    assert fit.due(study, replace(STATE, round=number, closing=closing)) is expected


def test_a_study_without_heads_has_none_due(make_study):
    assert not fit.due(make_study(), replace(STATE, closing=True))


# --- fit -------------------------------------------------------------------------------------------


def test_the_nearest_mean_of_two_sites_is_that_of_their_images_together(make_heads):
    done = fitted(make_heads(), site(0, 2, 4), site(2, 4, 6))
    (head,) = done.heads
    # Means (0 + 2) / 2, (2 + 4) / 2, (4 + 6) / 2
    assert head.parameters["weights"].tolist() == [[1, 3, 5]]
    assert done.record.num_messages == 2
    assert done.record.problems == {}
    assert set(done.record.results) == set(NAMES)


def test_a_head_without_a_quorum_is_named_with_the_counts_and_the_others_are_scored(make_heads):
    done = fitted(make_heads(required=2), site(0, 2, 4), site(2, 4, 6, silent_in="statistics"))
    assert done.heads == ()
    assert done.record.lacking == {
        "federated.nearest_mean": "1 training site(s) answered, 2 are required; south did not"
    }
    assert done.record.problems == {"south": "statistics: no answer within 60 s"}
    assert [result.title for result in done.record.results["south"]] == ["softmax"]


def test_features_of_another_width_are_left_out_and_the_site_is_named(make_heads):
    done = fitted(make_heads(), site(0, 2, 4), site(2, 4, 6, width=2))
    assert done.heads[0].parameters["weights"].tolist() == [[0, 2, 4]]
    assert done.record.problems == {
        "south": "statistics: its features have width 2, expected 1 as at most sites"
    }


def test_a_site_that_is_set_aside_has_no_part(make_heads):
    study = make_heads()
    study = study.model_copy(update={"admission": study.admission.model_copy(update={"set_aside_after": 2})})
    state = replace(STATE, refusals={"south": RefusalStreak(2, 4, "too long")})
    done = fitted(study, site(0, 2, 4), site(2, 4, 6), state)
    assert set(done.record.results) == {"north"}
    assert done.heads[0].parameters["weights"].tolist() == [[0, 2, 4]]


# --- scores ----------------------------------------------------------------------------------------


def test_too_few_scores_are_no_quorum_and_only_reasons_of_sites_without_a_score_are_given(make_heads):
    north = site(0, 2, 4, silent_in="statistics")
    with pytest.raises(QuorumNotMet) as few:
        fitted(make_heads(required=2), north, site(2, 4, 6, silent_in="score"))
    assert str(few.value).startswith(
        "1 of 2 training sites scored the heads, 2 are required (south: score: no answer within 60 s). "
    )


def test_scores_of_other_images_than_enrolled_are_refused(make_heads):
    two_images = count(np.eye(3)[[0, 0, 1, 2]], np.array([0, 0, 1, 2]), loss_sum=0.0)
    done = fitted(make_heads(), site(0, 2, 4), site(2, 4, 6, confusion=two_images))
    assert set(done.record.results) == {"north"}
    assert done.record.problems["south"] == (
        "score: its score of softmax is over other validation images than it enrolled with"
    )


@pytest.mark.parametrize(
    ("titles", "reason"),
    [
        (("softmax", "local.svm"), "it scored a head that the study does not list"),
        (("federated.nearest_mean",), "it did not score the softmax once"),
        (("softmax", "softmax"), "it did not score the softmax once"),
    ],
)
def test_scores_of_other_heads_than_the_studys_are_refused(make_heads, titles, reason):
    def south(plan: wire.HeadPlan) -> wire.Answer | None:
        answer = site(2, 4, 6)(plan)
        if isinstance(answer, wire.HeadAnswer) and answer.step == "score":
            results = tuple(HeadResult(title=title, score=SCORE) for title in titles)
            return answer.model_copy(update={"results": results})
        return answer

    assert fitted(make_heads(), site(0, 2, 4), south).record.problems["south"] == f"score: {reason}"
