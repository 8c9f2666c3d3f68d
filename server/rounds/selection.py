"""Selection of the best round, and early stopping.

The scores of a round belong to the weights that it started from, so a round is judged one round later. Values
are compared over the same sites only: a round without the score of a deciding site is not judged. The best
round follows from the state, so a resumed study stops where the uninterrupted one does.
"""

import math
from dataclasses import replace

from common.config import SelectionConfig, StudyConfig
from common.metrics import figures
from common.metrics.pooling import total
from server.state import Best, RoundState


def judged(study: StudyConfig, state: RoundState) -> RoundState:
    """`state` with `best` updated from its scores."""
    if study.selection is None:
        return state
    value = _value(study, study.selection, state)
    if value is None:
        return state
    best, number = state.best, state.round - 1
    if best is None or _gain(study.selection, best.value, value) > study.selection.min_gain:
        return replace(state, best=Best(number, value))
    return replace(state, best=replace(best, num_worse_since=best.num_worse_since + 1))


def reason_to_stop(study: StudyConfig, state: RoundState) -> str | None:
    """Reason for running no more rounds, as a sentence; None: go on."""
    return enough(study, state.best)


def enough(study: StudyConfig, best: Best | None) -> str | None:
    """The same from the best round so far."""
    selection = study.selection
    if selection is None or selection.patience is None or best is None:
        return None
    if best.num_worse_since < selection.patience:
        return None
    return (
        f"no better {selection.metric} than {best.value:.4f} after round {best.round} in "
        f"{best.num_worse_since} scored round(s)"
    )


def _value(study: StudyConfig, selection: SelectionConfig, state: RoundState) -> float | None:
    deciding = selection.sites or study.sites.all
    if not set(deciding) <= state.scores.keys():
        return None
    value = float(getattr(figures(total({site: state.scores[site] for site in deciding})), selection.metric))
    return value if math.isfinite(value) else None


def _gain(selection: SelectionConfig, before: float, now: float) -> float:
    return before - now if selection.metric == "loss" else now - before
