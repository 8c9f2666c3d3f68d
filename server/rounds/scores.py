"""The scores that a study was promised: those of its `evaluate` sites.

A study can train well without them, so the quorum of a round does not wait for them. But a study that names an
unseen source and never hears of it has not done what it was for. `sites.evaluate_missing` decides what that means.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from common.config import StudyConfig
from common.errors import QuorumNotMet
from server.state import RoundState, SiteRound

NO_IMAGE = "it scored no image"
NOT_ASKED = "it was not asked"


def unscored(study: StudyConfig, rows: Iterable[SiteRound], num_images: Mapping[str, int]) -> dict[str, str]:
    """`evaluate` sites without a score of one model, each with the reason.

    `rows` are those of the round that scored it, `num_images` the images scored in it, by site. A site that has only
    validation images scores those.
    """
    row_by_site: dict[str, SiteRound | None] = {row.site: row for row in rows}
    by_site = {site: row_by_site.get(site) for site in study.sites.evaluate}
    return {
        site: why_silent(row)
        for site, row in by_site.items()
        if not num_images.get(site, 0) or (row is not None and row.outcome != "ok")
    }


def unscored_in(study: StudyConfig, state: RoundState) -> dict[str, str]:
    """`evaluate` sites without a score in this state, each with the reason."""
    num_images = Counter[str]()
    for scores in (state.scores, state.test_scores):
        num_images.update({site: score.num_images for site, score in scores.items()})
    return unscored(study, state.sites, num_images)


def why_silent(row: SiteRound | None) -> str:
    """Why a site gave no score in a round, from its row there."""
    if row is None:
        return NOT_ASKED
    if row.outcome == "ok":
        return NO_IMAGE
    return row.reason or row.outcome


def sentence(lacking: Mapping[str, str]) -> str:
    """These sites and their reasons, for the last words of a study."""
    return "; ".join(f"{site} did not score the final model: {reason}" for site, reason in lacking.items())


def require_enrolled(study: StudyConfig, absent: Mapping[str, str]) -> None:
    """Raise QuorumNotMet if an `evaluate` site is absent and the study is to fail without it."""
    lacking = {site: absent[site] for site in study.sites.evaluate if site in absent}
    if lacking and study.sites.evaluate_missing == "fail":
        sentences = "; ".join(f"{site} cannot score the model: {reason}" for site, reason in lacking.items())
        raise QuorumNotMet(f"{sentences}. Start it, or {_OR_ELSE}.")


def require_heard(study: StudyConfig, state: RoundState) -> None:
    """Raise QuorumNotMet if the study is to fail without an `evaluate` site that has been silent for too long.

    One scoring may be missed and repeated in the next one, as often as `deadlines.repeats`. The closing evaluation
    may not.
    """
    if study.sites.evaluate_missing != "fail":
        return
    lacking = unscored_in(study, state)
    silent = {
        site: reason
        for site, reason in lacking.items()
        if state.closing or _num_missed(study, state, site) > study.deadlines.repeats
    }
    if silent:
        what = f"the model after round {state.round - 1}"
        sentences = "; ".join(f"{site} did not score {what}: {reason}" for site, reason in silent.items())
        raise QuorumNotMet(
            f"{sentences}. The weights after round {state.round - state.closing} are kept. Mend the site and go on "
            f"with `resume`, or {_OR_ELSE}."
        )


_OR_ELSE = "set sites.evaluate_missing to incomplete or pass, to go on without"


def _num_missed(study: StudyConfig, state: RoundState, site: str) -> int:
    """Scorings in a row, up to this one, without an answer of the site that counts."""
    absence = state.absences.get(site)
    if absence is None:
        return 0
    every = study.sites.evaluate_every
    return sum((number - 1) % every == 0 for number in range(absence.round, state.round + 1))
