"""The section on the outlier score: its limit, or why there is none."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common.calibration.conformal import ScoreCounts
from common.heads.outliers import OutlierRecord
from server.report.markdown import sections
from server.report.outcome import Outcome
from server.report.write import hub_card

MakeOutcome = Callable[..., Outcome]
ASKED: dict[str, Any] = {"out_of_distribution": {}}


def kept(**changes: Any) -> OutlierRecord:
    settings = {
        "weights_sha256": "ab", "after_round": 3, "shrinkage": 0.1, "num_train": 600, "flagged": 0.05,
        "limit": 1.5, "sites": {"north": ScoreCounts(images_B=(38, 2))},
    }  # fmt: skip
    return OutlierRecord.model_validate(settings | changes)


def text_of(outcome: Outcome) -> str:
    return sections(outcome)["outliers"]


def test_the_limit_stands_with_what_it_is_made_of_and_who_sent_no_counts(make_outcome: MakeOutcome) -> None:
    outcome = replace(make_outcome(settings=ASKED), outliers=kept(without=("south",)))
    text = text_of(outcome)
    assert "Made of 600 training images, with 10.0 % of the covariance replaced" in text
    assert "Limit **1.5**: at most 5.0 % of images like the 40 validation images of north" in text
    assert "No counts from south" in text
    assert text in hub_card(outcome)
    assert "flags images whose outlier score is above 1.5" in sections(outcome)["card"]


def test_why_there_is_no_limit_or_no_score_is_said(make_outcome: MakeOutcome) -> None:
    asked = make_outcome(settings=ASKED)
    assert "None: its sums are not on record" in text_of(asked)
    assert "the closing evaluation, which is not on record" in text_of(make_outcome(settings=ASKED, last=3))
    none = replace(asked, outliers=kept(limit=None, why_none="3 validation images are too few"))
    assert "**No limit**: 3 validation images are too few." in text_of(none)
    assert "outlier score is above" not in sections(none)["card"]


def test_a_study_that_does_not_ask_has_no_section(make_outcome: MakeOutcome) -> None:
    assert "outliers" not in sections(make_outcome())
