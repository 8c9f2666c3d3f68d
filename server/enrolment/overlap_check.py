"""Check for shared images before round 1: asks the sites, reports the result, and may stop the study.

It runs if the study has an `overlap` section. The sites send keyed hashes and nothing else
(`client/governance/image_hashes.py`). The hashes are compared here and not kept. An `evaluate` site that shares
images is sent which of its own hashes are shared, so its data manager gets a list of these images. All others
learn a number only.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path

from common import log, wire
from common.config import OverlapConfig, StudyConfig
from common.errors import SiteDataError
from server.enrolment import overlap
from server.rounds.failures import failure_sentence
from server.rounds.sites import Deadline, Sites
from server.state import Cohort


def compare(study: StudyConfig, sites: Sites, cohort: Cohort, run_dir: Path) -> None:
    """Compare the cohort's images if the study asks for it; the result is saved in `run_dir`.

    Raises SiteDataError if an `evaluate` site shares images with a training site or could not be compared,
    unless `overlap.on_shared` is `warn`.
    """
    if study.overlap is None:
        return
    hashes, refused = _ask(study, sites, dict.fromkeys(cohort.enrolments, ()))
    result = overlap.compared(study, hashes, _num_images(study, cohort), refused)
    overlap.save(run_dir, result)
    for sentence in overlap.remarks(study, result):
        log.warn(sentence)
    _send_shared(study, sites, result, hashes)
    problems = overlap.problems(study, result)
    if problems and study.overlap.on_shared == "fail":
        raise SiteDataError(_advice(study, result, problems))
    for sentence in problems:
        log.warn(f"{sentence}; the study goes on, and its report says so")
    if not problems:
        log.event(overlap.proved(study, result))


def _advice(study: StudyConfig, result: overlap.Overlap, problems: list[str]) -> str:
    sentences = ["; ".join(problems)]
    if any(overlap.is_leak(study, pair) and pair.same for pair in result.pairs):
        sentences.append("The data manager there finds them listed in overlap.csv and can take them out")
    if result.not_compared:
        sentences.append("Give every site the same overlap_secret and let its policy allow the comparison")
    setting = OverlapConfig(on_shared="warn").on_shared
    return ". ".join(
        [*sentences, f"Or run the study with overlap.on_shared: {setting}, and it says so in its report."]
    )


def _num_images(study: StudyConfig, cohort: Cohort) -> dict[str, int]:
    """Images that each site compares: all it has; at an `evaluate` site, those that it scores."""
    return {
        site: cohort.num_scored(site, ("validation", "test"))
        + (sum(enrolment.train_counts) if site in study.sites.train else 0)
        for site, enrolment in cohort.enrolments.items()
    }


def _send_shared(
    study: StudyConfig, sites: Sites, result: overlap.Overlap, hashes: Mapping[str, overlap.Hashes]
) -> None:
    """Send each `evaluate` site those of its hashes that a training site has, too."""
    compared = {site: sent for site, sent in hashes.items() if site in result.compared}
    shared = {
        site: overlap.shared_with_training(study, compared, site)
        for site in study.sites.evaluate
        if site in compared
    }
    shared = {site: tokens for site, tokens in shared.items() if tokens}
    if shared:
        _, refused = _ask(study, sites, shared)
        for site, reason in refused.items():
            log.warn(f"{site} did not receive the list of its shared images: {reason}", site=site)


def _ask(
    study: StudyConfig, sites: Sites, shared: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, overlap.Hashes], dict[str, str]]:
    """Hashes by site, and by site without any the reason. `shared`: by site to ask, the hashes it is sent.

    The first timely answer of a site counts.
    """
    plans = {
        site: wire.OverlapPlan(plan_id=uuid.uuid4().hex, site=site, study=study, shared=tokens)
        for site, tokens in shared.items()
    }
    hashes: dict[str, overlap.Hashes] = {}
    refused: dict[str, str] = {}
    unanswered = set(plans)
    for reply in sites.ask(plans, Deadline(study.deadlines.enrol_s)):
        if reply.late or reply.site not in unanswered:
            continue
        unanswered.remove(reply.site)
        match reply.answer:
            case wire.OverlapAnswer() as answer if answer.plan_id == plans[reply.site].plan_id:
                hashes[reply.site] = overlap.Hashes(
                    answer.check, frozenset(answer.same), frozenset(answer.similar)
                )
            case wire.Failure() as failure:
                refused[reply.site] = failure_sentence(failure)
            case _:
                refused[reply.site] = "its answer is not to this request"
    for site in sorted(unanswered):
        refused[site] = f"no answer within {study.deadlines.enrol_s:.0f} s"
    return hashes, refused
