"""Before round 1, if the study wants to know: do sites share images? Asks, tells, and stops the study.

The sites send keyed hashes and nothing else (`client/governance/image_hashes.py`), which are compared here and
forgotten. An `evaluate` site that shares images is told which of its own hashes are meant, so that
its data manager finds a list of them; nobody else is told more than a number.
"""

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from common import log, wire
from common.config import OverlapConfig, StudyConfig
from common.errors import SiteDataError
from server.enrolment import overlap
from server.rounds.failures import failure_sentence
from server.rounds.sites import Deadline, Reply, Sites
from server.state import Cohort


def compare(study: StudyConfig, sites: Sites, cohort: Cohort, run_dir: Path) -> None:
    """Compare the cohort's images if the study says so; the outcome is left in `run_dir`.

    Raises SiteDataError if an `evaluate` site is not unseen, or may not be, and the study does not put up
    with it.
    """
    if study.overlap is None:
        return
    hashes, refused = _ask(study, sites, dict.fromkeys(cohort.enrolments, ()))
    found = overlap.compared(study, hashes, _num_images(study, cohort), refused)
    overlap.save(run_dir, found)
    for sentence in overlap.remarks(study, found):
        log.warn(sentence)
    _tell(study, sites, found, hashes)
    wrong = overlap.problems(study, found)
    if wrong and study.overlap.on_shared == "fail":
        raise SiteDataError(_advice(study, found, wrong))
    for sentence in wrong:
        log.warn(f"{sentence}; the study goes on, and its report says so")
    if not wrong:
        log.event(overlap.proved(study, found))


def _advice(study: StudyConfig, found: overlap.Overlap, wrong: list[str]) -> str:
    told = ["; ".join(wrong)]
    if any(overlap.is_leak(study, pair) and pair.same for pair in found.pairs):
        told.append("The data manager there finds them listed in overlap.csv and can take them out")
    if found.not_compared:
        told.append("Give every site the same overlap_secret and let its policy allow the comparison")
    setting = OverlapConfig(on_shared="warn").on_shared
    return ". ".join(
        [*told, f"Or run the study with overlap.on_shared: {setting}, and it says so in its report."]
    )


def _num_images(study: StudyConfig, cohort: Cohort) -> dict[str, int]:
    """What a site compares: all it trains and tests on, or what it only scores."""
    return {
        site: sum(enrolment.test_counts) + (sum(enrolment.train_counts) if site in study.sites.train else 0)
        for site, enrolment in cohort.enrolments.items()
    }


def _tell(
    study: StudyConfig, sites: Sites, found: overlap.Overlap, hashes: Mapping[str, overlap.Hashes]
) -> None:
    """Tell each `evaluate` site which of its hashes a training site has, too."""
    able = {site: sent for site, sent in hashes.items() if site in found.compared}
    shared = {
        site: overlap.shared_with_training(study, able, site) for site in study.sites.evaluate if site in able
    }
    meant = {site: tokens for site, tokens in shared.items() if tokens}
    if meant:
        _, untold = _ask(study, sites, meant)
        for site, reason in untold.items():
            log.warn(f"{site} was not told which of its images are meant: {reason}", site=site)


def _ask(
    study: StudyConfig, sites: Sites, asked: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, overlap.Hashes], dict[str, str]]:
    """The hashes of each site, and why there are none; `asked` holds what a site is told."""
    plans = {
        site: wire.OverlapPlan(plan_id=uuid.uuid4().hex, site=site, study=study, shared=shared)
        for site, shared in asked.items()
    }
    found: dict[str, overlap.Hashes] = {}
    refused: dict[str, str] = {}
    for reply in _timely(sites.ask(plans, Deadline(study.deadlines.enrol_s))):
        match reply.answer:
            case wire.OverlapAnswer() as said if said.plan_id == plans[reply.site].plan_id:
                found[reply.site] = overlap.Hashes(said.check, frozenset(said.same), frozenset(said.similar))
            case wire.Failure() as failure:
                refused[reply.site] = failure_sentence(failure)
            case _:
                refused[reply.site] = "it answered another question"
    for site in plans.keys() - found.keys() - refused.keys():
        refused[site] = f"no answer within {study.deadlines.enrol_s:.0f} s"
    return found, refused


def _timely(replies: Iterator[Reply]) -> Iterator[Reply]:
    return (reply for reply in replies if not reply.late)
