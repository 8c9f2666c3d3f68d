"""The census under masks: how many images of each class all sites have together, and no site's own counts.

It is taken once in a study, before round 1. The sums are kept in the run's folder, and a study that is resumed goes on
with them. Sites that are not in the sum take no part, then or later: a second census with them would show, as the
difference to the first, what they have.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common import log, wire
from common.config import StudyConfig
from common.errors import QuorumNotMet
from common.masking.tables import CENSUS, image_sums
from common.wire import questions
from server.aggregation.masked_tables import MaskedTables
from server.enrolment import census
from server.rounds.masked_round import MaskedRound
from server.rounds.sites import Sites
from server.state import Cohort, Totals

_ROUND = 1
"""The census has the number of the round that it comes before, however late a study is resumed."""
_WAS_OPENED = "the sum of round 1 was opened"
"""In the refusal of a site that counted its images for this very study before (`client/masking/session.py`)."""


def counted(
    study: StudyConfig,
    sites: Sites,
    cohort: Cohort,
    run_dir: Path,
    pause: Callable[[float], None] = time.sleep,
) -> Cohort:
    """The cohort with the sums of its sites' counts, without the sites that are not in them. Without secure aggregation
    the cohort as it is.

    Raises QuorumNotMet if too few sites are in the sum, or too few of them are there now, and StorageError.
    """
    if study.secure_aggregation is None:
        return cohort
    before = census.load(run_dir)
    known = None if before is None else before.totals
    lacking: dict[str, str] = {}
    if known is None or known.study != study.fingerprint:
        known, lacking = _taken(study, sites, cohort, run_dir, pause)
        # At once: sites give no second census.
        census.save(run_dir, census.count(study, cohort.enrolments, known))
    else:
        log.event(f"the census under masks is that of the study's first start, of {', '.join(known.sites)}")
    out = {
        site: lacking.get(site, "it is not in the study's census, which is taken once under masks")
        for site in cohort.enrolments
        if site not in known.sites
    }
    for site, reason in out.items():
        log.warn(f"{site} cannot take part: {reason}", site=site)
    reasons = {**cohort.absent, **out}
    able = {site: enrolment for site, enrolment in cohort.enrolments.items() if site not in out}
    if len(able) < study.sites.quorum:
        raise QuorumNotMet(
            f"{len(able)} of {len(study.sites.train)} training sites can take part, {study.sites.quorum} are required. "
            + "; ".join(f"{site}: {reason}" for site, reason in reasons.items())
        )
    absent = {site: reasons[site] for site in study.sites.all if site in reasons}
    return replace(cohort, enrolments=able, absent=absent, totals=known)


def _taken(
    study: StudyConfig, sites: Sites, cohort: Cohort, run_dir: Path, pause: Callable[[float], None]
) -> tuple[Totals, dict[str, str]]:
    """The sums, and the sites that are not in them, each with the reason. Raises QuorumNotMet and StorageError."""
    num_classes = len(study.classes)
    masks = MaskedRound(study, sites, _ROUND, pause, run_dir / "opening.json", "census")
    try:
        masks.prepare(sorted(cohort.enrolments))
    except QuorumNotMet as error:
        if again := sorted(site for site, reason in masks.lacking.items() if _WAS_OPENED in reason):
            raise QuorumNotMet(_run_before(again, error)) from error
        raise
    tables = MaskedTables()
    lost: dict[str, str] = {}
    for attempt in range(study.deadlines.repeats + 1):
        # A site that misses the census misses the study, so it is asked again even if there are enough.
        silent = masks.envelopes.keys() - set(tables.sites) - lost.keys()
        if not silent:
            break
        if attempt:
            pause(study.deadlines.repeat_after_s)
        steps = {site: wire.CensusStep(envelopes=masks.envelopes[site]) for site in sorted(silent)}
        for site, answer in masks.ask(steps).items():
            if len(answer.census) != 3 * num_classes:
                lost[site] = f"it sent {len(answer.census)} masked counts, expected {3 * num_classes}"
                continue
            tables.add(site, {CENSUS: np.array(answer.census, np.uint64)})
    needed = max(study.mask_threshold_of("census"), study.sites.quorum)
    reasons = masks.lacking | lost
    if len(tables.sites) < needed:
        why = "; ".join(f"{site}: {reason}" for site, reason in sorted(reasons.items()))
        raise QuorumNotMet(
            f"census: {len(tables.sites)} site(s) sent masked counts, {needed} are required ({why})"
        )
    masks.open(tables.sites, [tables], questions.CENSUS)
    try:
        sums = image_sums(tables.sums[CENSUS], len(tables.sites))
    except ValueError as error:
        raise QuorumNotMet(
            f"census: {error}: a site sent wrong shares or wrong numbers; begin the study under another name"
        ) from error
    train, validation, test = (
        sums[start : start + num_classes] for start in range(0, len(sums), num_classes)
    )
    totals = Totals(
        study=study.fingerprint,
        sites=tables.sites,
        train_counts=train,
        validation_counts=validation,
        test_counts=test,
    )
    return totals, {site: reason for site, reason in reasons.items() if site not in tables.sites}


def _run_before(sites: Sequence[str], error: QuorumNotMet) -> str:
    return (
        f"{', '.join(sites)} counted images for a study of this name and these settings before, and no site opens "
        "two sums of one study: resume that run; or give this study another name or another seed; or, in a simulation, "
        f"make the sites again in another folder. {error}"
    )
