"""Before round 1: who is there, do all sites hold the same model, what are the first weights.

Every site builds the model itself and describes it; the server compares layouts and hashes,
so a site with another version, another weights file or another class list is named before
any training is spent. One site is asked to send the weights along, because the server has
no torch; a file at the server can take their place.
"""

import time
import uuid
from collections.abc import Callable, Mapping

from common import log, wire
from common.config import StudyConfig
from common.errors import ConfigError, QuorumNotMet
from common.weights import Array, Arrays, digest, first_difference, mismatch
from server.rounds.failures import NOTICED_BY_SERVER, failure_sentence
from server.rounds.sites import Deadline, Sites
from server.state import Cohort

_LOOK_S, _REMIND_S = 0.5, 15.0


def wait_for_sites(study: StudyConfig, sites: Sites, pause: Callable[[float], None] = time.sleep) -> None:
    """Return when every site of the study is connected, or enough are when `enrol_s` is over.

    Raises QuorumNotMet that names who is missing.
    """
    wanted, started, said = set(study.sites.all), time.monotonic(), -_REMIND_S
    while missing := wanted - sites.online():
        waited = time.monotonic() - started
        if waited > study.deadlines.enrol_s:
            break
        if waited - said >= _REMIND_S:
            said = waited
            log.event(
                f"waiting for {_names(missing)} to connect ({waited:.0f} of {study.deadlines.enrol_s:.0f} s)",
                missing=sorted(missing),
            )
        pause(_LOOK_S)
    if not missing:
        return
    present = set(study.sites.train) - missing
    sentence = (
        f"{_names(missing)} did not connect within {study.deadlines.enrol_s:.0f} s; "
        f"{len(present)} of {len(study.sites.train)} training sites are there, {study.sites.quorum} are required"
    )
    if len(present) < study.sites.quorum:
        raise QuorumNotMet(
            f"{sentence}. Start the missing sites, raise deadlines.enrol_s or lower sites.required."
        )
    log.warn(f"{sentence}; going on without", missing=sorted(missing))


def enrol(
    study: StudyConfig,
    sites: Sites,
    first_weights: Arrays | None,
    first_round: int = 1,
    pause: Callable[[float], None] = time.sleep,
) -> Cohort:
    """Ask every connected site to set up the study, and compare what they built.

    `first_weights` replace those that a site builds. A site that could not be reached is asked again, as
    often as a round is repeated: who misses the enrolment misses the study. Raises QuorumNotMet if
    too few training sites agree, ConfigError if `first_weights` are of another model.
    """
    online = sites.online()
    builder = None if first_weights is not None else min(online & set(study.sites.train), default=None)
    found: dict[str, wire.Enrolment] = {}
    refused: dict[str, str] = {}
    asked = [site for site in study.sites.all if site in online]
    for _ in range(study.deadlines.repeats):
        asked = _ask(study, sites, asked, builder, first_round, found, refused)
        if not asked:
            break
        log.warn(
            f"{', '.join(asked)} could not be reached; asking again in {study.deadlines.repeat_after_s:.0f} s"
        )
        pause(study.deadlines.repeat_after_s)
        _wait_until_online(set(asked), sites, study.deadlines.enrol_s, pause)
    if asked:
        _ask(study, sites, asked, builder, first_round, found, refused)
    while first_weights is None and builder not in found and found.keys() & set(study.sites.train):
        builder = min(found.keys() & set(study.sites.train))  # the first builder failed: another builds
        del found[builder]
        _ask(study, sites, [builder], builder, first_round, found, refused)

    weights = _first_weights(study, found, builder, first_weights)
    refused |= _disagreements(study, found, weights)
    for site, reason in sorted(refused.items()):
        log.warn(f"{site} cannot take part: {reason}", site=site)
    able = {
        site: found[site].model_copy(update={"weights": {}}) for site in sorted(found.keys() - refused.keys())
    }
    num_able = len(able.keys() & set(study.sites.train))
    if num_able < study.sites.quorum or weights is None:
        raise QuorumNotMet(
            f"{num_able} of {len(study.sites.train)} training sites can take part, {study.sites.quorum} are required. "
            + "; ".join(f"{site}: {reason}" for site, reason in sorted(refused.items()))
        )
    return Cohort(able, weights)


def _ask(
    study: StudyConfig,
    sites: Sites,
    asked: list[str],
    builder: str | None,
    first_round: int,
    found: dict[str, wire.Enrolment],
    refused: dict[str, str],
) -> list[str]:
    """Ask these sites; what they say goes into `found` or `refused`. Returns those that were not reached."""
    lost = []
    plans = {
        site: wire.EnrolPlan(
            plan_id=uuid.uuid4().hex,
            site=site,
            study=study,
            want_weights=site == builder,
            first_round=first_round,
        )
        for site in asked
    }
    for reply in sites.ask(plans, Deadline(study.deadlines.enrol_s)):
        match reply.answer:
            case wire.Enrolment() as enrolment:
                found[reply.site] = enrolment
                refused.pop(reply.site, None)
                log.event(
                    f"{reply.site} enrolled: {sum(enrolment.train_counts)} training and "
                    f"{sum(enrolment.test_counts)} test images, computes on {enrolment.device}",
                    site=reply.site,
                    train_counts=list(map(str, enrolment.train_counts)),
                    test_counts=list(map(str, enrolment.test_counts)),
                )
            case wire.Failure() as failure:
                refused[reply.site] = failure_sentence(failure)
                if failure.error == "unreachable" and failure.case == NOTICED_BY_SERVER:
                    lost.append(reply.site)
            case wire.RoundAnswer() | wire.OverlapAnswer() | wire.HeadAnswer():
                refused[reply.site] = "message: it answered another question"
    for site in set(asked) - found.keys() - refused.keys():
        refused[site] = f"no answer within {study.deadlines.enrol_s:.0f} s"
    return lost


def _wait_until_online(
    wanted: set[str], sites: Sites, within_s: float, pause: Callable[[float], None]
) -> None:
    waited_s = 0.0
    while not wanted <= sites.online() and waited_s < within_s:
        pause(_LOOK_S)
        waited_s += _LOOK_S


def _first_weights(
    study: StudyConfig, found: Mapping[str, wire.Enrolment], builder: str | None, given: Arrays | None
) -> Mapping[str, Array] | None:
    if given is not None:
        return {name: given[name] for name in given}
    if builder is None or builder not in found:
        return None
    weights: Mapping[str, Array] = found[builder].weights
    wrong = mismatch(found[builder].layout, weights)
    if wrong is not None or digest(weights) != found[builder].weights_digest:
        raise ConfigError(
            f"the first weights of study {study.name} from {builder} do not fit its own description "
            f"({wrong or 'another hash'}); run again, and check that all sides have the same version"
        )
    return weights


def _disagreements(
    study: StudyConfig, found: Mapping[str, wire.Enrolment], weights: Mapping[str, Array] | None
) -> dict[str, str]:
    """Sites whose model or data does not fit the study, each with the reason."""
    refused: dict[str, str] = {}
    if weights is None:
        return refused
    for site, enrolment in found.items():
        if (wrong := mismatch(enrolment.layout, weights)) is not None:
            refused[site] = f"its model differs from the first weights: {wrong}"
        elif len(enrolment.train_counts) != len(study.classes) or len(enrolment.test_counts) != len(
            study.classes
        ):
            refused[site] = f"it counts other classes than the study's {len(study.classes)}"
        elif site in study.sites.train and sum(enrolment.train_counts) == 0:
            refused[site] = "it has no training images of the study's classes"
    agreed = [enrolment for site, enrolment in sorted(found.items()) if site not in refused]
    for site, enrolment in found.items():
        if site in refused:
            continue
        reference = agreed[0]
        if (wrong := first_difference(reference.layout, enrolment.layout)) is not None:
            refused[site] = f"its model differs from {reference.site}'s: {wrong}"
        elif enrolment.frozen_digest != reference.frozen_digest:
            refused[site] = (
                f"its frozen weights differ from {reference.site}'s; give both the same weights file"
            )
        elif enrolment.weights_digest != reference.weights_digest:
            refused[site] = f"it built other first weights than {reference.site}; install the same versions"
    return refused


def _names(sites: set[str]) -> str:
    return ", ".join(sorted(sites))
