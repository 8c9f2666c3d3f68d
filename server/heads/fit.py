"""The heads of a study's final weights: fitted, in their best form, and scored; and its outlier score.

It begins when the network's weights are final. If too few sites score, the study ends as failed; its weights and its
report are written by then.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import log
from common.config import StudyConfig
from common.config.heads import HeadsConfig, candidates
from common.errors import QuorumNotMet
from common.heads import FittedHead
from common.heads.result import HeadResult
from common.weights import num_bytes
from server.heads import outliers, travel
from server.heads.calls import HeadCalls
from server.heads.federated import FederatedFit
from server.heads.masked import MaskedSums, SumRefusedError
from server.heads.outliers import Outliers
from server.heads.record import POOLED, HeadsRecord
from server.heads.scoring import choose, scored, scored_together
from server.heads.training_sites import TrainingSites
from server.rounds import participation
from server.rounds.masked_round import HEADS_AGAIN
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


def fit(
    study: StudyConfig,
    sites: Sites,
    cohort: Cohort,
    state: RoundState,
    pause: Callable[[float], None] = time.sleep,
    mask_record: Path | None = None,
) -> Fitted:
    """Fit and score every head of the study. `mask_record` is the file of `MaskedRound`. Raises QuorumNotMet if too few
    sites score, or a site of the masked sums is missing, and StorageError.
    """
    assert study.heads is not None
    calls = HeadCalls(study, sites, cohort, state)
    masks = None if study.secure_aggregation is None else MaskedSums(calls, pause, mask_record)
    set_aside = participation.set_aside(state.refusals, study.admission.set_aside_after)
    names = [site for site in study.sites.all if site in cohort.enrolments and site not in set_aside]
    trainers = [site for site in names if site in study.sites.train]
    log.event(f"heads on the weights after round {calls.round}: {', '.join(study.heads.titles)}")
    fitting = FederatedFit(study, study.heads, calls, TrainingSites(study, calls, trainers, masks))
    heads = tuple(fitting.run()) if study.heads.federated else ()
    heads = _chosen(study.heads, calls, fitting, heads)
    detected = _outliers(study, calls, fitting) if state.closing else None
    if masks is not None:
        return Fitted(_record_of_sums(calls, fitting, heads, masks), heads, detected)
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


def _record_of_sums(
    calls: HeadCalls, fitting: FederatedFit, heads: Sequence[FittedHead], masks: MaskedSums
) -> HeadsRecord:
    """The record of a study whose scores are known of all sites together alone. Raises QuorumNotMet."""
    together: tuple[str, ...] = ()
    results: tuple[HeadResult, ...] = ()
    if heads:
        try:
            together, results = scored_together(calls, fitting.sites.names, heads, masks)
        except SumRefusedError as refused:
            raise QuorumNotMet(
                f"the heads are fitted and have no score: {refused}. {HEADS_AGAIN}"
            ) from refused
    return HeadsRecord(
        round=calls.round,
        results={POOLED: results} if results else {},
        problems={**calls.problems},
        lacking={**fitting.lacking},
        num_messages=calls.num_messages,
        mib=sum(num_bytes(head.arrays()) for head in heads) / 2**20,
        together=together,
    )


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
    num_train = float(sums.counts_C.sum())
    if fitting.sites.masks is None:
        return Outliers(found, num_train, outliers.counted(calls, fitting.sites.names, found))
    try:
        sites, counts = outliers.counted_together(fitting.sites.masks, fitting.sites.names, found)
    except SumRefusedError as refused:
        log.warn(f"heads  no outlier score: {refused}")
        return None
    return Outliers(found, num_train, counts, sites)


def _chosen(
    config: HeadsConfig, calls: HeadCalls, fitting: FederatedFit, heads: tuple[FittedHead, ...]
) -> tuple[FittedHead, ...]:
    """The heads, each in its best form. Raises QuorumNotMet."""
    forms = {
        f"federated.{head.title}": [fitting.forms[name] for name in candidates(head)]
        for head in config.federated
        if candidates(head) and candidates(head)[0] in fitting.forms
    }
    if not forms:
        return heads
    try:
        best = choose(calls, fitting.sites.names, forms, fitting.sites.masks)
    except SumRefusedError as refused:
        raise QuorumNotMet(f"no form of the heads can be chosen: {refused}. {HEADS_AGAIN}") from refused
    return tuple(best.get(head.form.title, head) for head in heads)
