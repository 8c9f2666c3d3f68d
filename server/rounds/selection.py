"""Selection of the best round, and early stopping, by validation images.

The scores of a round belong to the weights that it started from, so a round is judged one round later. Values
are compared over the same sites only: a round without the score of a deciding site is not judged. The best
round follows from the state, so a resumed study stops where the uninterrupted one does.
"""

import math
from collections.abc import Collection
from dataclasses import replace

from common.config import SelectionConfig, StudyConfig
from common.errors import ConfigError
from common.metrics import figures
from common.metrics.pooling import POOLED, total
from server.state import Best, Cohort, RoundState


def deciding(study: StudyConfig, cohort: Cohort) -> tuple[str, ...]:
    """Sites by whose validation images the study chooses; empty if it does not choose.

    A training site that did not enrol counts: what it holds is not known, and it may come back.
    """
    if study.selection is None:
        return ()
    if study.selection.sites is not None:
        return study.selection.sites
    if study.secure_aggregation is not None:  # the server cannot take one site's score out of the sum
        return study.sites.train
    return tuple(
        site
        for site in study.sites.train
        if site not in cohort.enrolments or cohort.num_scored(site, ("validation",))
    )


def require_validation(study: StudyConfig, cohort: Cohort) -> None:
    """Raise ConfigError if the study chooses by images that the sites do not have."""
    if study.selection is None:
        return
    if cohort.totals is not None:
        if sum(cohort.totals.validation_counts):
            return
        raise _lacks_validation(study, "no training site has any")
    named = [site for site in deciding(study, cohort) if site in cohort.enrolments]
    lacking = [site for site in named if not cohort.num_scored(site, ("validation",))]
    if named and not lacking:
        return
    who = f"{', '.join(lacking)} of selection.sites" if lacking else "no training site"
    has = "have none" if len(lacking) > 1 else "has none" if lacking else "has any"
    raise _lacks_validation(study, f"{who} {has}")


def _lacks_validation(study: StudyConfig, who: str) -> ConfigError:
    return ConfigError(
        f"study {study.name} chooses by validation images, and {who}: set `split.validation` in the site's YAML, "
        "name other sites in selection.sites, or leave selection out"
    )


def judged(study: StudyConfig, state: RoundState, sites: Collection[str]) -> RoundState:
    """`state` with `best` updated from its scores at these sites, the deciding ones."""
    if study.selection is None:
        return state
    value = _value(study.selection, state, sites)
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


def _value(selection: SelectionConfig, state: RoundState, sites: Collection[str]) -> float | None:
    if POOLED in state.scores:  # comparable only if all of them are in it
        answered = {row.site for row in state.sites if row.outcome == "ok"}
        known, scores = answered if set(sites) == answered else set(), state.scores
    else:
        known, scores = (
            set(state.scores),
            {site: state.scores[site] for site in sites if site in state.scores},
        )
    if not sites or not set(sites) <= known:
        return None
    value = float(getattr(figures(total(scores)), selection.metric))
    return value if math.isfinite(value) else None


def _gain(selection: SelectionConfig, before: float, now: float) -> float:
    return before - now if selection.metric == "loss" else now - before
