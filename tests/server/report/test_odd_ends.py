"""Whole reports of studies that end oddly: every figure is a number or a dash, and no sentence says more than is so."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.metrics import Score, count, empty
from server.report.markdown import markdown
from server.report.outcome import Ending
from server.state import RoundState
from tests.server.report.conftest import Change, MakeOutcome, rescored, without

NUM_CLASSES = 3


def of_one_class(site: str, _: Score) -> Score:
    """Four images, all of the first class, at every site."""
    probabilities_NC = np.full((4, NUM_CLASSES), 1 / NUM_CLASSES)
    return count(probabilities_NC, np.zeros(4, np.int64), 4.4)


def without_numbers(site: str, score: Score) -> Score:
    """As weights that diverged give them."""
    return score.model_copy(update={"loss_sum": float("nan")})


def of_nothing(site: str, score: Score) -> Score:
    """A site whose test side is empty answers with a score of none."""
    return empty(NUM_CLASSES) if site == "west" else score


def everywhere(change: Callable[[str, Score], Score | None]) -> Change:
    return lambda state: rescored(state, change)


def untrained(state: RoundState) -> RoundState:
    """A round in which the update of every site was refused."""
    rows = (replace(row, outcome="refused", reason="not a number", num_examples=0) for row in state.sites)
    return replace(state, sites=tuple(rows), scores={}, test_scores={})


@pytest.mark.parametrize(
    "change",
    [everywhere(of_one_class), everywhere(without_numbers), everywhere(of_nothing), untrained,
     without("west", "missing", "no answer within 9 s", [3, 4]),
     without("unseen", "missing", "no answer within 9 s", [2, 3, 4])],
    ids=["one class", "losses that are no numbers", "an empty side", "every update refused",
         "a site that leaves in the last round", "an evaluate site that answers only the first round"],
)  # fmt: skip
@pytest.mark.parametrize("last", [2, 4])
def test_no_figure_of_a_report_is_anything_but_a_number_or_a_dash(
    make_outcome: MakeOutcome, change: Change, last: int
) -> None:
    ending = None if last == 4 else Ending("stopped", "by the operator after round 2")
    text = markdown(make_outcome(change, last=last, ending=ending))
    assert not re.search(r"\b(nan|inf|None|NaN)\b(?!:)", re.sub(r"\nNone: ", "\n", text))
    assert ("**The study was stopped: by the operator after round 2**" in text) == (last == 2)


def test_images_of_one_class_have_an_accuracy_and_no_auroc(make_outcome: MakeOutcome) -> None:
    # 4 images at each of 4 sites; equal probabilities, so the first class is predicted: all are right
    text = markdown(make_outcome(everywhere(of_one_class)))
    (row,) = [line for line in text.splitlines() if line.startswith("| **pooled** |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["16", "100.0 (80.6 to 100.0)", "100.0"]
    assert cells[7] == "-"  # AUROC
    assert "`-`: there is no such figure" in text


def test_a_site_without_test_images_stands_in_the_table_with_a_dash(make_outcome: MakeOutcome) -> None:
    text = markdown(make_outcome(everywhere(of_nothing)))
    assert "Not in the table: west (it scored no image)." in text


def test_a_round_without_an_update_trained_nothing(make_outcome: MakeOutcome) -> None:
    text = markdown(make_outcome(untrained, last=2, ending=Ending("failed", "no update was usable")))
    assert "was to be trained by 3 sites in 3 rounds. No update of a site is on record." in text
    assert "| 1 | north | refused | not a number |" in text
    assert "No site scored the model: there are no figures to report." in text
