"""Outcomes of studies that went as planned, but for what a test changes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config import StudyConfig
from server.report.outcome import Outcome
from server.report.write import append_round
from server.state import RoundState, SiteRound
from server.storage import history

Change = Callable[[RoundState], RoundState]
MakeOutcome = Callable[..., Outcome]


def without(site: str, outcome: str, reason: str, rounds: Sequence[int]) -> Change:
    """In these rounds the site's answer does not count: a row with this outcome and reason, and no score."""

    def change(state: RoundState) -> RoundState:
        if state.round not in rounds:
            return state
        row = SiteRound(site, outcome, reason)  # type: ignore[arg-type]
        rows = tuple(row if old.site == site else old for old in state.sites)
        scores = {name: score for name, score in state.scores.items() if name != site}
        return replace(state, sites=rows, scores=scores)

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
