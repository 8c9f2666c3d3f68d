"""What one reply gives: an update, scores, and the site's row. Wrong ones are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

from common import log, wire
from common.config import FedNova, OwnModel, Scaffold, StudyConfig, own_models
from common.config.aggregation import Weighted
from common.config.types import ScoredSide
from common.errors import UpdateRejected
from common.masking.stream import Words
from common.masking.tables import SCORES, pooled_score
from common.metrics import Score
from common.weights import Arrays
from server.aggregation import local_work
from server.aggregation.site_weights import site_weights
from server.aggregation.update import AdmittedUpdate
from server.rounds import admission
from server.rounds.failures import failure_sentence
from server.rounds.sites import Reply
from server.state import Cohort, RoundState, SiteRound


def read(
    study: StudyConfig,
    cohort: Cohort,
    state: RoundState,
    plan: wire.RoundPlan,
    reply: Reply,
    row: SiteRound,
) -> tuple[AdmittedUpdate | None, Mapping[ScoredSide, Score], SiteRound]:
    """The update, if any, and the scores in one reply, and the site's row. Raises UpdateRejected."""
    match reply.answer:
        case wire.Failure() as failure:
            return None, {}, replace(row, outcome="failed", reason=failure_sentence(failure))
        case (
            wire.ApprovalAnswer()
            | wire.Enrolment()
            | wire.OverlapAnswer()
            | wire.MaskAnswer()
            | wire.HeadAnswer() as other
        ):
            raise UpdateRejected(f"its answer is of kind {other.kind}, expected one to round {plan.round}")
        case wire.RoundAnswer() as answer:
            row = replace(
                row,
                num_examples=answer.num_examples,
                num_steps=answer.num_steps,
                train_loss=answer.train_loss,
                epsilon=answer.epsilon,
                train_s=answer.train_s,
                evaluate_s=answer.evaluate_s,
            )
            scores = admission.admit_scores(
                answer,
                site=plan.site,
                plan_id=plan.plan_id,
                round=plan.round,
                counts={side: cohort.counts(reply.site, side) for side in plan.score}
                if plan.envelopes is None
                else {},
                own=_own(study, plan),
                subgroups={} if plan.train or "test" not in plan.score else study.subgroups,
                replicates=wire.asks_for_replicates(plan),
                noise=study.noise_of_scores(reply.site),
            )
            if not plan.train:
                return None, scores, row
            if plan.envelopes is not None:
                masked = admission.admit_masked(answer, state.layout)
                return masked, scores, replace(row, masked=True)
            update = admission.admit(
                admission.unpacked(answer, state.layout, study.transport),
                site=plan.site,
                plan_id=plan.plan_id,
                round=plan.round,
                layout=state.layout,
                train_count=cohort.train_count(reply.site),
                max_norm=study.admission.max_norm,
                received=state.weights,
                possible_steps=local_work.possible_steps(
                    study.local, cohort.train_count(reply.site), study.privacy
                )
                if isinstance(study.algorithm, FedNova | Scaffold)
                else None,
                is_private=study.privacy is not None,
                weight=weight(study, cohort, reply.site),
            )
            return update, scores, replace(row, delta_norm=update.norm)


def masked_tables(study: StudyConfig, plan: wire.RoundPlan, reply: Reply) -> Arrays:
    """The tables of scores in a masked answer; none in others. Raises UpdateRejected."""
    if plan.envelopes is None or not isinstance(reply.answer, wire.RoundAnswer):
        return {}
    return admission.admit_masked_scores(reply.answer, plan.score, len(study.classes))


def pooled_scores(
    study: StudyConfig, sums: Mapping[str, Words], bins: Sequence[int]
) -> dict[ScoredSide, Score]:
    """The scores of all sites together, by side. Raises ValueError for sums that are of no scores."""
    num_classes, sides = len(study.classes), get_args(ScoredSide)
    return {
        side: pooled_score(sums[f"{SCORES}/{side}"], num_classes, min(bins))
        for side in sides
        if f"{SCORES}/{side}" in sums
    }


def weight(study: StudyConfig, cohort: Cohort, site: str) -> int | None:
    """Weight of a site in the mean; None: the images that it says it trained on."""
    rule = study.aggregation
    if not isinstance(rule, Weighted) or rule.weigh_sites_by == "images":
        return None
    return trainer_weights(study, cohort).get(site)


def trainer_weights(study: StudyConfig, cohort: Cohort) -> dict[str, int]:
    """Weights of the training sites that take part, from the images that they enrolled with."""
    rule = study.aggregation
    counts = {
        site: cohort.enrolments[site].train_counts for site in study.sites.train if site in cohort.enrolments
    }
    return site_weights(rule.weigh_sites_by if isinstance(rule, Weighted) else "images", counts)


def _own(study: StudyConfig, plan: wire.RoundPlan) -> tuple[OwnModel, ...]:
    """Models of the site's own that it scores with the test, if it trains."""
    tests = "test" in plan.score and not plan.train and plan.site in study.sites.train
    return own_models(study.personalisation) if tests else ()


def log_row(number: int, row: SiteRound, scores: Mapping[ScoredSide, Score]) -> None:
    """Log one line for a site and round, as soon as its outcome is known."""
    after = f"after {row.answered_after_s:.1f} s"
    if row.outcome != "ok":
        log.warn(
            f"round {number}  {row.site}: {row.outcome} {after}: {row.reason}",
            round=number, site=row.site, outcome=row.outcome, reason=row.reason,
        )  # fmt: skip
        return
    parts = []
    if row.train_loss is not None:
        parts.append(
            f"trained {row.num_steps} steps on {row.num_examples} images, loss {row.train_loss:.3f}, "
            f"{row.mib_up:.1f} MiB back"
        )
    elif row.epsilon is not None and row.num_steps:
        parts.append(
            f"trained {row.num_steps} steps, {row.mib_up:.1f} MiB back with noise, epsilon {row.epsilon:.3g} so far"
        )
    elif row.masked:
        spent = "" if row.epsilon is None else f", epsilon {row.epsilon:.3g} so far"
        parts.append(f"trained, {row.mib_up:.1f} MiB back under masks{spent}")
    scored = [f"{score.num_images} {side}" for side, score in scores.items() if score.num_images]
    if scored:
        parts.append(f"scored {' and '.join(scored)} images")
    log.event(
        f"round {number}  {row.site}: {'; '.join(parts) or 'answered'} {after}",
        round=number, site=row.site, outcome=row.outcome,
    )  # fmt: skip
