"""The heads of a study's final weights: fitted, in their best form, and scored; and its outlier score.

It begins when the network's weights are final. If too few sites score, the study ends as failed; its weights and its
report are written by then.
"""

from dataclasses import dataclass

import numpy as np

from common import log
from common.config import StudyConfig
from common.config.heads import HeadsConfig, candidates
from common.errors import QuorumNotMet
from common.heads import FittedHead
from common.weights import num_bytes
from server.heads import outliers, travel
from server.heads.calls import HeadCalls
from server.heads.federated import FederatedFit
from server.heads.outliers import Outliers
from server.heads.record import HeadsRecord
from server.heads.scoring import choose, scored
from server.rounds import participation
from server.rounds.sites import Sites
from server.state import Cohort, RoundState


@dataclass(frozen=True)
class Fitted:
    """The heads of one set of weights."""

    record: HeadsRecord
    heads: tuple[FittedHead, ...]
    outliers: Outliers | None = None
    """The outlier score, in a study that asks for one; None also if it could not be made."""


def due(study: StudyConfig, state: RoundState) -> bool:
    """Whether heads are fitted on the weights of this state."""
    if study.heads is None:
        return False
    every = study.heads.every
    # The last round's weights get their heads after the closing scores.
    return state.closing or (every is not None and state.round % every == 0 and state.round < study.rounds)


def fit(study: StudyConfig, sites: Sites, cohort: Cohort, state: RoundState) -> Fitted:
    """Fit and score every head of the study. Raises QuorumNotMet if too few sites score."""
    assert study.heads is not None
    calls = HeadCalls(study, sites, cohort, state)
    set_aside = participation.set_aside(state.refusals, study.admission.set_aside_after)
    names = [site for site in study.sites.all if site in cohort.enrolments and site not in set_aside]
    trainers = [site for site in names if site in study.sites.train]
    log.event(f"heads on the weights after round {calls.round}: {', '.join(study.heads.titles)}")
    fitting = FederatedFit(study, study.heads, calls, trainers)
    heads = tuple(fitting.run()) if study.heads.federated else ()
    heads = _chosen(study.heads, calls, fitting, heads)
    detected = _outliers(study, calls, fitting) if state.closing else None
    travelled = travel.collect(study, calls, trainers)
    results = scored(study, calls, names, heads, travelled, "test" if state.closing else "validation")
    num_scored = len(results.keys() & set(study.sites.train))
    if num_scored < study.sites.quorum:
        reasons = [
            f"{site}: {calls.problems[site]}"
            for site in sorted(study.sites.train)
            if site in calls.problems and site not in results
        ]
        raise QuorumNotMet(
            f"{num_scored} of {len(study.sites.train)} training sites scored the heads, {study.sites.quorum} are "
            f"required ({'; '.join(reasons)}). The weights are kept, and resume fits the heads again."
        )
    record = HeadsRecord(
        round=calls.round,
        results=results,
        problems={**calls.problems},
        lacking={**fitting.lacking, **travelled.lacking},
        epsilons={site: calls.epsilons[site] for site in sorted(calls.epsilons)},
        num_messages=calls.num_messages,
        mib=(sum(num_bytes(head.arrays()) for head in heads) + num_bytes(travelled.arrays)) / 2**20,
    )
    return Fitted(record, heads, detected)


def _outliers(study: StudyConfig, calls: HeadCalls, fitting: FederatedFit) -> Outliers | None:
    """The outlier score from the sums of the study's discriminant; None if it cannot be made, and the log says why."""
    settings = study.out_of_distribution
    if settings is None:
        return None
    if fitting.discriminant is None:
        log.warn("heads  no outlier score: the discriminant that it is made with could not be fitted")
        return None
    view, sums = fitting.discriminant
    try:
        found = outliers.detector(sums, view, settings.shrinkage)
    except np.linalg.LinAlgError as error:
        log.warn(f"heads  no outlier score: {error}")
        return None
    return Outliers(found, float(sums.counts_C.sum()), outliers.counted(calls, fitting.sites, found))


def _chosen(
    config: HeadsConfig, calls: HeadCalls, fitting: FederatedFit, heads: tuple[FittedHead, ...]
) -> tuple[FittedHead, ...]:
    """The heads, each in its best form."""
    forms = {
        f"federated.{head.title}": [fitting.forms[name] for name in candidates(head)]
        for head in config.federated
        if candidates(head) and candidates(head)[0] in fitting.forms
    }
    if not forms:
        return heads
    best = choose(calls, fitting.sites, forms)
    return tuple(best.get(head.form.title, head) for head in heads)
