"""Outcomes of studies that went as planned, but for what a test changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config import StudyConfig
from common.metrics import Score
from server.report.outcome import Outcome
from server.report.write import append_round
from server.state import RoundState, SiteRound
from server.storage import history

Change = Callable[[RoundState], RoundState]
MakeOutcome = Callable[..., Outcome]


def rescored(state: RoundState, change: Callable[[str, Score], Score | None]) -> RoundState:
    """The state with every score changed, on both sides; None takes one out."""

    def changed(scores: Mapping[str, Score]) -> dict[str, Score]:
        return {site: new for site, score in scores.items() if (new := change(site, score)) is not None}

    return replace(state, scores=changed(state.scores), test_scores=changed(state.test_scores))


def without(site: str, outcome: str, reason: str, rounds: Sequence[int]) -> Change:
    """In these rounds the site's answer does not count: a row with this outcome and reason, and no score."""

    def change(state: RoundState) -> RoundState:
        if state.round not in rounds:
            return state
        row = SiteRound(site, outcome, reason)  # type: ignore[arg-type]
        rows = tuple(row if old.site == site else old for old in state.sites)
        return rescored(replace(state, sites=rows), lambda name, score: None if name == site else score)

    return change


@pytest.fixture
def make_outcome(
    tmp_path: Path, study: StudyConfig, random_state: Callable[[int], RoundState]
) -> MakeOutcome:
    """`make_outcome(*changes, last=4, settings={}, **fields)`: the study after these rounds, 4 being the closing one.

    `changes` alter every state, `settings` replace those of the study, `fields` are the outcome's.
    """

    def make(
        *changes: Change, last: int = 4, settings: dict[str, Any] | None = None, **fields: Any
    ) -> Outcome:
        folder = tmp_path / f"outcome-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        chosen = StudyConfig.model_validate(study.model_dump() | (settings or {}))
        for number in range(1, last + 1):
            state = random_state(number)
            for change in changes:
                state = change(state)
            append_round(folder, state, chosen)
        return Outcome(chosen, history.read_rounds(folder), None, synthetic=False, **fields)

    return make
