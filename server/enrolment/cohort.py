"""Enrolment before round 1: which sites take part, on which model, and from which first weights.

Every site builds the model itself and describes it. The server compares layouts and hashes, so a site with
another version, weights file or class list is named before any time is spent on training. The server has no
torch, so one site sends the first weights along. A file at the server can replace them.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import numpy as np

from common import log, wire
from common.config import StudyConfig
from common.console.spans import format_span
from common.errors import QuorumNotMet
from common.polling import SLOW_POLL_S, wait_until
from common.weights import Array, Arrays, digest, first_difference, mismatch
from server.enrolment import approvals
from server.rounds import scores
from server.rounds.failures import NOTICED_BY_SERVER, failure_sentence, printable
from server.rounds.sites import Deadline, Sites
from server.state import Cohort

_REMIND_S = 15.0
_STALE_S = 3600.0
"""After so long a wait for people, the sites that enrolled before it enrol again."""


def wait_for_sites(study: StudyConfig, sites: Sites, pause: Callable[[float], None] = time.sleep) -> None:
    """Return when every site of the study is connected, or when enough are at the end of `enrol_s`.

    Raises QuorumNotMet with the names of the missing sites.
    """
    wanted, started, reminded_s = set(study.sites.all), time.monotonic(), -_REMIND_S
    paused_s = 0.0
    while missing := wanted - sites.online():
        waited = max(time.monotonic() - started, paused_s)
        if waited > study.deadlines.enrol_s:
            break
        if waited - reminded_s >= _REMIND_S:
            reminded_s = waited
            log.event(
                f"waiting for {_names(missing)} to connect ({waited:.0f} of {study.deadlines.enrol_s:.0f} s)",
                missing=sorted(missing),
            )
        pause(SLOW_POLL_S)
        paused_s += SLOW_POLL_S
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
    scores.require_enrolled(study, dict.fromkeys(sorted(missing), _not_connected(study)))
    log.warn(f"{sentence}; going on without", missing=sorted(missing))


def enrol(
    study: StudyConfig,
    sites: Sites,
    first_weights: Arrays | None,
    first_round: int = 1,
    pause: Callable[[float], None] = time.sleep,
    *,
    people: approvals.WaitingRecord = approvals.NOT_KEPT,
    clock: Callable[[], datetime] = approvals.utc_now,
) -> Cohort:
    """Ask every connected site to set up the study, and compare the models they built.

    `first_weights` replace those that a site builds. A site that could not be reached is asked again, as
    often as a round is repeated, because a site that misses the enrolment misses the study. A site whose
    policy lets a person decide is waited for; `people` records that. Raises QuorumNotMet if too few training
    sites agree, or an `evaluate` site that the study cannot do without does not enrol, ConfigError if
    `first_weights` are of another model.
    """
    online = sites.online()
    away = {site: _not_connected(study) for site in study.sites.all if site not in online}
    builder = None if first_weights is not None else min(online & set(study.sites.train), default=None)
    heard = _Answers()
    enrolled, refused = heard.enrolled, heard.refused
    ask = partial(_ask_until_reached, study, sites, first_round=first_round, heard=heard, pause=pause)
    ask([site for site in study.sites.all if site in online], builder)
    if heard.undecided:
        _wait_for_people(
            study, sites, heard, partial(ask, builder=builder), people, pause, clock, first_round
        )
    asked = {builder}
    while first_weights is None and (other := _other_builder(study, heard, builder)) is not None:
        builder = other
        if builder in asked:
            break  # it described another model when it was asked again
        asked.add(builder)
        del enrolled[builder]
        _ask(study, sites, [builder], builder, first_round, heard)

    weights = _first_weights(enrolled, builder, first_weights)
    refused |= _disagreements(study, enrolled, weights)
    able = {
        site: enrolled[site].model_copy(update={"weights": {}})
        for site in sorted(enrolled.keys() - refused.keys())
    }
    reasons = away | refused
    absent = {site: reasons.get(site, "it did not enrol") for site in study.sites.all if site not in able}
    num_able = len(able.keys() & set(study.sites.train))
    if num_able < study.sites.quorum or weights is None:
        raise QuorumNotMet(
            f"{num_able} of {len(study.sites.train)} training sites can take part, {study.sites.quorum} are required. "
            + "; ".join(f"{site}: {reason}" for site, reason in sorted(absent.items()))
        )
    scores.require_enrolled(study, absent)
    for site, reason in sorted(refused.items()):  # not before: a study that fails says it once, at its end
        log.warn(f"{site} cannot take part: {reason}", site=site)
    return Cohort(able, weights, absent)


@dataclass
class _Answers:
    """What the sites have answered so far; each stands in one of the three."""

    enrolled: dict[str, wire.Enrolment] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    undecided: dict[str, wire.ApprovalAnswer] = field(default_factory=dict)


def _ask_until_reached(
    study: StudyConfig,
    sites: Sites,
    names: list[str],
    builder: str | None,
    *,
    first_round: int,
    heard: _Answers,
    pause: Callable[[float], None],
) -> None:
    """Ask the named sites, those that could not be reached as often as a round is repeated."""
    for _ in range(study.deadlines.repeats):
        names = _ask(study, sites, names, builder, first_round, heard)
        if not names:
            return
        log.warn(
            f"{', '.join(names)} could not be reached; asking again in {study.deadlines.repeat_after_s:.0f} s"
        )
        pause(study.deadlines.repeat_after_s)
        _wait_until_online(set(names), sites, study.deadlines.enrol_s, pause)
    _ask(study, sites, names, builder, first_round, heard)


def _wait_for_people(
    study: StudyConfig,
    sites: Sites,
    heard: _Answers,
    ask: Callable[[list[str]], None],
    record: approvals.WaitingRecord,
    pause: Callable[[float], None],
    clock: Callable[[], datetime],
    first_round: int,
) -> None:
    """Wait until the undecided sites have decided, and enrol those that agree.

    After a long wait all are enrolled once more: what a site holds may have changed.
    """
    waiting = approvals.Waiting(study, heard.undecided, record, pause, clock, first_round=first_round)
    heard.undecided.clear()
    while agreed := waiting.next_agreed(sites, heard.enrolled.keys()):
        ask(agreed)
        for site, answer in heard.undecided.items():  # taken back, or closed, in between
            waiting.take(site, answer)
        heard.undecided.clear()
    heard.refused.update(waiting.refused)
    if waiting.waited_s > _STALE_S and heard.enrolled:
        again = [site for site in study.sites.all if site in heard.enrolled]
        log.event(
            f"{', '.join(again)} enrol once more: the first answers are {format_span(waiting.waited_s)} old"
        )
        heard.enrolled.clear()
        ask(again)
        for site, answer in heard.undecided.items():
            heard.refused[site] = answer.reason or "its approval was taken back"


def _ask(
    study: StudyConfig,
    sites: Sites,
    names: list[str],
    builder: str | None,
    first_round: int,
    heard: _Answers,
) -> list[str]:
    """Ask the named sites and take what they say into `heard`. Returns those that were not reached.

    A refusal is that of the last attempt. A late enrolment counts: it is the same description of the model.
    """
    enrolled, refused = heard.enrolled, heard.refused
    unreachable = []
    plans = {
        site: wire.EnrolPlan(
            plan_id=uuid.uuid4().hex,
            site=site,
            study=study,
            want_weights=site == builder,
            first_round=first_round,
        )
        for site in names
    }
    unanswered = set(names)
    for reply in sites.ask(plans, Deadline(study.deadlines.enrol_s)):
        if not reply.late:
            unanswered.discard(reply.site)
        match reply.answer:
            case wire.Enrolment() as enrolment:
                enrolled[reply.site] = enrolment
                refused.pop(reply.site, None)
                heard.undecided.pop(reply.site, None)
                log.event(
                    f"{reply.site} enrolled: {_holds(study, enrolment)}, computes on {enrolment.device}",
                    site=reply.site,
                    train_counts=list(map(str, enrolment.train_counts)),
                    validation_counts=list(map(str, enrolment.validation_counts)),
                    test_counts=list(map(str, enrolment.test_counts)),
                )
            case _ if reply.site in enrolled:
                continue  # a failure of an earlier attempt that arrives after the enrolment
            case wire.ApprovalAnswer(decision="yes") if reply.late:
                continue  # to a question before this one
            case wire.ApprovalAnswer(decision="no") as answer:
                refused[reply.site] = approvals.refusal(printable(answer.reason))
            case wire.ApprovalAnswer(decision="undecided" | "closed") as answer:
                heard.undecided[reply.site] = answer
                refused.pop(reply.site, None)
            case wire.Failure() as failure:
                refused[reply.site] = failure_sentence(failure)
                if failure.error == "unreachable" and failure.case == NOTICED_BY_SERVER and not reply.late:
                    unreachable.append(reply.site)
            case (
                wire.ApprovalAnswer()
                | wire.RoundAnswer()
                | wire.OverlapAnswer()
                | wire.MaskAnswer()
                | wire.HeadAnswer() as other
            ):
                refused[reply.site] = f"its answer is of kind {other.kind}, expected an enrolment"
    for site in sorted(unanswered - enrolled.keys() - heard.undecided.keys()):
        refused[site] = f"no answer within {study.deadlines.enrol_s:.0f} s"
    return unreachable


def _wait_until_online(
    wanted: set[str], sites: Sites, within_s: float, pause: Callable[[float], None]
) -> None:
    wait_until(lambda: wanted <= sites.online(), within_s, poll_s=SLOW_POLL_S, pause=pause)


def _other_builder(study: StudyConfig, heard: "_Answers", builder: str | None) -> str | None:
    """Who has to be asked for the first weights, because those of `builder` cannot be used; None if they can.

    A builder that failed, whose weights are not those that it describes, or whose model is not that of most training
    sites, must not end the study for the others. Its reason is put with the refusals.
    """
    usual = _usual(study, heard.enrolled)
    if builder in usual:
        enrolment = heard.enrolled[builder]
        difference = mismatch(enrolment.layout, enrolment.weights)
        if difference is None and digest(enrolment.weights) == enrolment.weights_digest:
            return None
        heard.refused[builder] = (
            f"its first weights do not fit its own description ({difference or 'another hash'}); install the same "
            "version on all sides"
        )
        del heard.enrolled[builder]
        usual = _usual(study, heard.enrolled)
    return next(iter(usual), None)


def _usual(study: StudyConfig, enrolled: Mapping[str, wire.Enrolment]) -> list[str]:
    """Training sites with the model that most of them describe, by name; in a tie, that of the first by name."""
    by_model: dict[str, list[str]] = {}
    for site in sorted(enrolled.keys() & set(study.sites.train)):
        one = enrolled[site]
        layout = sorted((name, spec.model_dump_json()) for name, spec in one.layout.items())
        by_model.setdefault(f"{one.frozen_digest} {one.weights_digest} {layout}", []).append(site)
    return max(by_model.values(), key=len, default=[])


def _first_weights(
    enrolled: Mapping[str, wire.Enrolment], builder: str | None, given: Arrays | None
) -> Mapping[str, Array] | None:
    if given is not None:
        return {name: given[name] for name in given}
    if builder is None or builder not in enrolled:
        return None
    weights: Mapping[str, Array] = enrolled[builder].weights
    return {
        name: np.array(weights[name]) for name in weights
    }  # they may be in a file that goes with the answer


def _disagreements(
    study: StudyConfig, enrolled: Mapping[str, wire.Enrolment], weights: Mapping[str, Array] | None
) -> dict[str, str]:
    """Sites whose model or data does not fit the study, each with the reason."""
    refused: dict[str, str] = {}
    if weights is None:
        return refused
    trains = study.rounds > 0 or study.heads is not None
    masked = study.secure_aggregation is not None  # then each site checks its own images
    for site, enrolment in enrolled.items():
        if (difference := mismatch(enrolment.layout, weights)) is not None:
            refused[site] = f"its model differs from the first weights: {difference}"
        elif masked:
            if any(_counts(enrolment)) or enrolment.images is not None:
                refused[site] = (
                    "it describes its images without masks, in a study that has them; install the same version on all "
                    "sides"
                )
        elif any(len(counts) != len(study.classes) for counts in _counts(enrolment)):
            refused[site] = f"it counts other classes than the study's {len(study.classes)}"
        elif trains and site in study.sites.train and sum(enrolment.train_counts) == 0:
            refused[site] = "it has no training images of the study's classes"
        elif site in study.sites.evaluate and not sum(map(sum, _counts(enrolment)[1:])):
            held_back = "that its policy lets be counted" if enrolment.withheld else "of the study's classes"
            refused[site] = f"it has no test or validation images {held_back}"
    agreed = {site: enrolment for site, enrolment in sorted(enrolled.items()) if site not in refused}
    usual = _usual(study, agreed)
    for site, enrolment in enrolled.items():
        if site in refused:
            continue
        reference = agreed[usual[0]] if usual else next(iter(agreed.values()))
        if (difference := first_difference(reference.layout, enrolment.layout)) is not None:
            refused[site] = f"its model differs from {reference.site}'s: {difference}"
        elif enrolment.frozen_digest != reference.frozen_digest:
            refused[site] = (
                f"its frozen weights differ from {reference.site}'s; give both the same weights file"
            )
        elif enrolment.weights_digest != reference.weights_digest:
            refused[site] = f"it built other first weights than {reference.site}; install the same versions"
    return refused


def _holds(study: StudyConfig, enrolment: wire.Enrolment) -> str:
    if study.secure_aggregation is not None:
        return "its images are counted under masks"
    train, validation, test = map(sum, _counts(enrolment))
    return f"{train} training, {validation} validation and {test} test images"


def _not_connected(study: StudyConfig) -> str:
    return f"it did not connect within {study.deadlines.enrol_s:.0f} s"


def _names(sites: set[str]) -> str:
    return ", ".join(sorted(sites))


def _counts(enrolment: wire.Enrolment) -> tuple[tuple[int, ...], ...]:
    """Images by class: for training, validation and test."""
    return enrolment.train_counts, enrolment.validation_counts, enrolment.test_counts
