"""The plans of one round: the same question to every site that is asked."""

import hashlib

from common import wire
from common.config import StudyConfig
from common.config.types import ScoredSide
from common.heads import under
from common.weights import digest
from server.aggregation.control_variates import CONTROL
from server.rounds import downlink, drawing, participation
from server.state import Cohort, RoundState


def round_plans(
    study: StudyConfig,
    cohort: Cohort,
    state: RoundState,
    aside: frozenset[str],
    *,
    train: bool,
    score: tuple[ScoredSide, ...],
) -> dict[str, wire.RoundPlan]:
    """Plans of the round after `state`, by site. Those `aside` get none."""
    # The same work has the same id: a server that was killed and asks again gets the answer that the site
    # keeps, or is about to have.
    trainers = [site for site in cohort.enrolments if site in study.sites.train and site not in aside]
    asked = drawing.drawn(study, trainers, state.round + 1) if train else set(trainers)
    control = state.optimizer.slots.get(CONTROL, {}) if train else {}
    corrected = {**state.weights, **under(wire.CONTROL, control)}
    totals = _class_totals(study, cohort) if train and study.local.needs_class_counts else None
    work = f"{study.fingerprint} {state.round + 1} {train} {' '.join(score)} {digest(state.weights)}"
    work += f" {totals}" if totals else ""
    plans = {
        site: wire.RoundPlan(
            plan_id=hashlib.sha256(f"{work} {site}".encode()).hexdigest()[:32],
            site=site,
            study=study,
            round=state.round + 1,
            train=train and site in study.sites.train,
            score=score,
            best=None if state.best is None else state.best.round,
            class_counts=totals if site in study.sites.train else None,
            control=state.counted.get(site, 0) if train else 0,
            notice=participation.notice(state.refusals.get(site), study.admission.set_aside_after),
            weights=corrected if site in study.sites.train and control else state.weights,
        )
        for site in cohort.enrolments
        if site not in aside
        and (site in asked or (site not in study.sites.train and cohort.num_scored(site, score)))
    }
    return {site: downlink.plan_for(plan, state) for site, plan in plans.items()}


def _class_totals(study: StudyConfig, cohort: Cohort) -> tuple[int, ...]:
    """Training images by class of all training sites that take part."""
    if cohort.totals is not None:
        return cohort.totals.train_counts
    counts = (
        enrolment.train_counts for site, enrolment in cohort.enrolments.items() if site in study.sites.train
    )
    return tuple(map(sum, zip(*counts, strict=True)))
