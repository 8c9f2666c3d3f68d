"""Sites that were to score the final model and did not: what that means for the study."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.config import StudyConfig
from common.errors import QuorumNotMet
from common.metrics import count, empty
from server.rounds import scores
from server.state import Absence, RoundState, SiteRound

SCORE = count(np.eye(3), np.array([0, 1, 2]), loss_sum=0.0)


@pytest.fixture
def make(make_study: Any) -> Any:
    """A study of north that trains, and of unseen and far that score in every second round."""

    def build(missing: str = "fail", every: int = 1) -> StudyConfig:
        sites = {
            "train": ("north",), "evaluate": ("unseen", "far"), "evaluate_missing": missing, "evaluate_every": every,
        }  # fmt: skip
        return StudyConfig.model_validate(make_study(sites=sites, deadlines={"repeats": 1}))

    return build


def state(number: int, *rows: SiteRound, closing: bool = False, since: int | None = None) -> RoundState:
    """After a round in which north and far scored, and unseen was silent `since` a round."""
    absences = {} if since is None else {"unseen": Absence(since, "")}
    return RoundState(
        number, {}, {}, {}, sites=rows, scores={"north": SCORE, "far": SCORE}, closing=closing, absences=absences
    )  # fmt: skip


LATE = SiteRound("unseen", "missing", "no answer within 9 s")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (SiteRound("unseen", "absent", "it did not connect within 9 s"), "it did not connect within 9 s"),
        (LATE, "no answer within 9 s"),
        (SiteRound("unseen", "refused", "its score is over 2 classes"), "its score is over 2 classes"),
        (SiteRound("unseen", "set_aside"), "set_aside"),
        (SiteRound("unseen", "ok"), "it scored no image"),
    ],
)
def test_a_site_without_a_score_is_named_with_its_reason(make: Any, row: SiteRound, reason: str) -> None:
    assert scores.unscored_in(make(), state(4, row, closing=True)) == {"unseen": reason}


def test_a_site_that_was_not_asked_has_that_for_a_reason(make: Any) -> None:
    assert scores.unscored_in(make(), state(4)) == {"unseen": "it was not asked"}


def test_a_score_of_no_image_is_none(make: Any) -> None:
    after = state(4, SiteRound("unseen", "ok"), closing=True)
    after = replace(after, scores={**after.scores, "unseen": empty(3)})
    assert scores.unscored_in(make(), after) == {"unseen": "it scored no image"}
    heard = replace(after, scores={**after.scores, "unseen": SCORE})
    assert scores.unscored_in(make(), heard) == {}


@pytest.mark.parametrize("missing", ["incomplete", "pass"])
def test_a_study_that_can_do_without_goes_on(make: Any, missing: str) -> None:
    scores.require_enrolled(make(missing), {"unseen": "no key"})
    scores.require_heard(make(missing), state(4, LATE, closing=True, since=1))


def test_a_study_that_cannot_do_without_ends_before_round_1(make: Any) -> None:
    with pytest.raises(QuorumNotMet, match="unseen cannot score the model: no key"):
        scores.require_enrolled(make(), {"unseen": "no key"})
    scores.require_enrolled(make(), {"north": "no key"})  # a matter of the quorum


def test_one_scoring_may_be_missed_and_the_next_one_may_not(make: Any) -> None:
    scores.require_heard(make(), state(2, LATE, since=2))
    with pytest.raises(
        QuorumNotMet, match="unseen did not score the model after round 2: no answer within 9 s"
    ):
        scores.require_heard(make(), state(3, LATE, since=2))


def test_rounds_in_which_nobody_scores_do_not_count(make: Any) -> None:
    # every second round is scored: rounds 1, 3 and 5. Silent since 3, the second scoring missed is 5
    scores.require_heard(make(every=2), state(3, LATE, since=3))
    scores.require_heard(make(every=2), state(4, since=3))
    with pytest.raises(QuorumNotMet):
        scores.require_heard(make(every=2), state(5, LATE, since=3))


def test_the_closing_evaluation_may_not_be_missed(make: Any) -> None:
    scores.require_heard(
        make(), replace(state(4, closing=True), scores=dict.fromkeys(("unseen", "far"), SCORE))
    )
    with pytest.raises(QuorumNotMet, match="The weights after round 3 are kept"):
        scores.require_heard(make(), state(4, LATE, closing=True, since=4))
