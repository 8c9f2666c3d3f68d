"""The section on calibration: figures that can be worked by hand, and why there are none."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common.calibration import Calibration
from common.calibration.conformal import ScoreCounts
from common.calibration.temperature import Reliability, TemperatureFit
from server.report.markdown import sections
from server.report.outcome import Outcome
from server.report.write import hub_card

MakeOutcome = Callable[..., Outcome]
ASKED: dict[str, Any] = {"calibration": {}}


def reliability(confidence: float, loss: float) -> Reliability:
    """Ten images, seven of them right, that the network is so sure of together."""
    return Reliability(images_K=(10.0,), right_K=(7.0,), confidence_K=(confidence,), loss=loss)


FITTED = TemperatureFit(
    temperature=2.0, at_end=False, before=reliability(9.5, 0.9), after=reliability(7.2, 0.6)
)


def kept(fitted: TemperatureFit | None, *without: str) -> Calibration:
    counts = {"north": ScoreCounts(images_B=(6, 4))}
    return Calibration(weights_sha256="ab", after_round=3, fitted=fitted, sites=counts, without=without)


def text_of(outcome: Outcome) -> str:
    return sections(outcome)["calibration"]


def test_the_temperature_stands_with_what_it_changed_and_who_sent_no_counts(
    make_outcome: MakeOutcome,
) -> None:
    outcome = replace(make_outcome(settings=ASKED), calibration=kept(FITTED, "south"))
    text = text_of(outcome)
    assert "**2**, from the sums of 10 validation images of north." in text
    assert "| as the network gives them | 0.900 | 25.0 |" in text  # (9.5 - 7) / 10
    assert "| with the temperature | 0.600 | 2.0 |" in text  # (7.2 - 7) / 10
    assert "No counts from south" in text
    assert text in hub_card(outcome)


def test_a_temperature_at_the_end_of_what_is_tried_says_so(make_outcome: MakeOutcome) -> None:
    outcome = replace(
        make_outcome(settings=ASKED), calibration=kept(FITTED.model_copy(update={"at_end": True}))
    )
    assert "It is the end of what is tried" in text_of(outcome)


def test_why_there_is_no_temperature_is_said(make_outcome: MakeOutcome) -> None:
    asked = make_outcome(settings=ASKED)
    assert "no counts are on record" in text_of(asked)
    assert "too few validation images (10) were counted; no counts from south." in text_of(
        replace(asked, calibration=kept(None, "south"))
    )
    assert "which is not on record" in text_of(make_outcome(settings=ASKED, last=3))
    assert "calibration" not in sections(make_outcome())
