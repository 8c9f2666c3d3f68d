"""The story of a study: send, gather, admit, aggregate, step, score; again.

Rounds are an iterator of states. Checkpoint, report and early stop are plain consumers of
it, and to resume is to start it from another state. A round is one message per site: the
site scores what it received, trains, and answers with a delta and counts. So the scores of
a state belong to the weights its round *started* from, and a last round that only evaluates
closes the study with the scores of the final weights.

Nothing here depends on the order in which sites answer: admitted updates are folded in the
order of site names, so the same study gives the same bits.
"""

import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from common import log, wire
from common.config import StudyConfig
from common.errors import QuorumNotMet, UpdateRejected
from common.metrics import Score
from common.weights import num_bytes
from server import admission, aggregation, optimizer, standing
from server.aggregation import AdmittedUpdate
from server.enrolment import Cohort
from server.sites import Reply, Sites
from server.state import RoundState, SiteRound


def run_rounds(study: StudyConfig, sites: Sites, cohort: Cohort, start: RoundState) -> Iterator[RoundState]:
    """States after round start.round+1, ..., study.rounds, then the closing evaluation.

    The closing state carries round `study.rounds + 1`, the weights of the last round and their
    scores. Raises QuorumNotMet; every state yielded before is whole.
    """
    state = start
    rule = aggregation.build_rule(study.aggregation)
    while state.round < study.rounds:
        gathered = _gather(study, sites, cohort, state, train=True)
        delta = rule(gathered.updates)
        weights, slots = optimizer.step(study.algorithm, state.weights, delta, state.layout, state.optimizer)
        state = replace(gathered.state, weights=weights, optimizer=slots)
        yield state
    if state.round == study.rounds:
        yield _gather(study, sites, cohort, state, train=False).state


@dataclass(frozen=True)
class _Gathered:
    updates: list[AdmittedUpdate]
    state: RoundState
    """The next state, but for weights and optimizer."""


def _gather(study: StudyConfig, sites: Sites, cohort: Cohort, state: RoundState, *, train: bool) -> _Gathered:
    number, started = state.round + 1, time.monotonic()
    deadline_s = study.deadlines.round_s if train else study.deadlines.evaluate_s
    limit = study.admission.set_aside_after
    aside = standing.set_aside(state.refusals, limit)
    plans = _plans(study, cohort, state, number, aside, train=train)
    mib_down = num_bytes(state.weights) / 2**20
    log.event(
        f"round {number} of {study.rounds}: {mib_down:.1f} MiB of weights to {', '.join(plans)}"
        if train
        else f"closing: the final weights go to {', '.join(plans)} to be scored",
        round=number,
    )
    rows: dict[str, SiteRound] = {}
    updates: list[AdmittedUpdate] = []
    scores: dict[str, Score] = {}
    for reply in sites.ask(plans, deadline_s):
        if reply.site in rows or reply.site not in plans:
            _say_uncounted(number, reply.site, rows)
            continue
        row = SiteRound(
            reply.site, "ok", answered_after_s=reply.after_s, mib_down=mib_down,
            mib_up=num_bytes(wire.arrays_of(reply.answer)) / 2**20,
        )  # fmt: skip
        try:
            update, score, row = _read(study, cohort, state, plans[reply.site], reply, row)
        except UpdateRejected as rejection:
            row = replace(row, outcome="refused", reason=_printable(str(rejection)))
        else:
            if update is not None:
                updates.append(update)
            if score is not None:
                scores[reply.site] = score
        rows[reply.site] = row
        _say(number, row, scores.get(reply.site))
    for site in sorted(plans.keys() - rows.keys()):
        rows[site] = SiteRound(
            site,
            "missing",
            f"no answer within {deadline_s:.0f} s",
            mib_down=mib_down,
            answered_after_s=deadline_s,
        )
        _say(number, rows[site], None)

    for site, reason in admission.too_long(updates, study.admission).items():
        rows[site] = replace(rows[site], outcome="refused", reason=reason)
        scores.pop(site, None)
        _say(number, rows[site], None)
    for site in sorted(aside & cohort.enrolments.keys()):
        reason = f"{standing.summary(state.refusals[site])}; no plan until the operator readmits it"
        rows[site] = SiteRound(site, "set_aside", reason)
    refusals = standing.counted(state.refusals, number, rows.values())
    for site in sorted(standing.set_aside(refusals, limit) - aside):
        log.warn(
            f"{site} is set aside and gets no more plans: {standing.summary(refusals[site])}",
            round=number, site=site, outcome="set_aside", refusals=refusals[site].in_a_row,
        )  # fmt: skip

    answered = [site for site in study.sites.train if site in rows and rows[site].outcome == "ok"]
    if len(answered) < study.sites.quorum:
        lacking = "; ".join(f"{row.site}: {row.reason}" for row in rows.values() if row.outcome != "ok")
        raise QuorumNotMet(
            f"round {number} has {len(answered)} usable answers of training sites, {study.sites.quorum} are "
            f"required ({lacking}). The weights after round {state.round} are kept."
        )
    updates = [update for update in updates if rows[update.site].outcome == "ok"]
    updates.sort(key=lambda update: update.site)
    after = replace(
        state,
        round=number,
        sites=tuple(rows[site] for site in sorted(rows)),
        scores={site: scores[site] for site in sorted(scores)},
        seconds=time.monotonic() - started,
        refusals=refusals,
    )
    return _Gathered(updates, after)


def _plans(
    study: StudyConfig,
    cohort: Cohort,
    state: RoundState,
    number: int,
    aside: Collection[str],
    *,
    train: bool,
) -> Mapping[str, wire.RoundPlan]:
    scores_now = not train or state.round % study.sites.evaluate_every == 0
    return {
        site: wire.RoundPlan(
            plan_id=uuid.uuid4().hex,
            site=site,
            study=study,
            round=number,
            train=train and site in study.sites.train,
            notice=standing.notice(state.refusals.get(site), study.admission.set_aside_after),
            weights=state.weights,
        )
        for site in cohort.enrolments
        if site not in aside and (site in study.sites.train or scores_now)
    }


def _read(
    study: StudyConfig,
    cohort: Cohort,
    state: RoundState,
    plan: wire.RoundPlan,
    reply: Reply,
    row: SiteRound,
) -> tuple[AdmittedUpdate | None, Score | None, SiteRound]:
    """What one reply is worth. Raises UpdateRejected."""
    match reply.answer:
        case wire.Failure() as failure:
            reason = f"{failure.told} ({failure.error}, case {failure.case} in its log)"
            return None, None, replace(row, outcome="failed", reason=_printable(reason))
        case wire.Enrolment():
            raise UpdateRejected(f"found an answer of kind enrolment, expected one to round {plan.round}")
        case wire.RoundAnswer() as answer:
            row = replace(
                row,
                num_examples=answer.num_examples,
                num_steps=answer.num_steps,
                train_loss=answer.train_loss,
                train_s=answer.train_s,
                evaluate_s=answer.evaluate_s,
            )
            score = admission.admit_score(
                answer,
                site=plan.site,
                plan_id=plan.plan_id,
                round=plan.round,
                test_counts=cohort.enrolments[reply.site].test_counts,
            )
            if not plan.train:
                return None, score, row
            update = admission.admit(
                answer,
                site=plan.site,
                plan_id=plan.plan_id,
                round=plan.round,
                layout=state.layout,
                train_count=cohort.train_count(reply.site),
                max_norm=study.admission.max_norm,
            )
            return update, score, replace(row, delta_norm=update.norm)


def _printable(reason: str) -> str:
    """A reason may quote a site, which could have chosen anything: no line breaks, no control codes."""
    return "".join(character if character.isprintable() else "?" for character in reason[:1000])


def _say_uncounted(number: int, site: str, rows: dict[str, SiteRound]) -> None:
    """An answer that nobody waits for; that it came is kept in the row of the one that counts."""
    reason = "a second answer was refused, the first one counts"
    if site in rows and reason not in rows[site].reason:
        rows[site] = replace(rows[site], reason="; ".join(filter(None, (rows[site].reason, reason))))
    told = reason if site in rows else "an answer was refused, it was not asked"
    log.warn(f"round {number}  {site}: {told}", round=number, site=site, outcome="refused", reason=told)


def _say(number: int, row: SiteRound, score: Score | None) -> None:
    """One line a site and round, the moment it is known."""
    after = f"after {row.answered_after_s:.1f} s"
    if row.outcome != "ok":
        log.warn(
            f"round {number}  {row.site}: {row.outcome} {after}: {row.reason}",
            round=number, site=row.site, outcome=row.outcome, reason=row.reason,
        )  # fmt: skip
        return
    told = []
    if row.train_loss is not None:
        told.append(
            f"trained {row.num_steps} steps on {row.num_examples} images, loss {row.train_loss:.3f}, "
            f"{row.mib_up:.1f} MiB back"
        )
    if score is not None and score.num_images:
        told.append(f"scored {score.num_images}")
    log.event(
        f"round {number}  {row.site}: {'; '.join(told) or 'answered'} {after}",
        round=number, site=row.site, outcome=row.outcome,
    )  # fmt: skip
