"""Heads that travel: this site's own ones leave as arrays if its policy lets them, and those of others are scored.

What comes in is data: arrays of numbers, whose sizes and entries are checked before they are applied.
"""

import numpy as np

from client.heads.features import Features
from client.heads.own_heads import FeatureTable, Place, fit, require_many, unavailable
from client.heads.worker import HeadUnavailable
from common import log, wire
from common.config.heads import HeadProblem, HeadsConfig, LocalHead
from common.errors import WireError
from common.heads import Floats, below, travelling, under
from common.heads.result import HeadResult
from common.heads.travelling import HeadTooLarge
from common.weights import Array
from common.wire import head_steps


def leave(
    plan: wire.HeadPlan, step: head_steps.TravelStep, heads: HeadsConfig, table: FeatureTable, place: Place
) -> tuple[dict[str, Array], list[HeadResult]]:
    """Arrays of the heads that may leave, and for each of the others the reason.

    Raises WireError for a head that does not travel in the study, PolicyRefusal if one patient's features are most of a
    class's.
    """
    arrays: dict[str, Array] = {}
    kept: list[HeadResult] = []
    for config in _asked(heads, step.heads):
        fitted, problem = _to_travel(config, table, plan, place)
        arrays |= under(f"{travelling.FITTED}/{config.kind}/{config.title}", fitted)
        if problem is not None:
            title = travelling.Travelling(name=config.title, owner=plan.site).title
            kept.append(HeadResult(title=title, problem=problem))
    return arrays, kept


def _asked(heads: HeadsConfig, names: tuple[str, ...]) -> list[LocalHead]:
    known = {head.title: head for head in travelling.asked(heads)}
    if unknown := [name for name in names if name not in known]:
        raise WireError(f"found a plan for {len(unknown)} head(s) that do not travel in the study")
    return [known[name] for name in names]


def _to_travel(
    config: LocalHead, table: FeatureTable, plan: wire.HeadPlan, place: Place
) -> tuple[dict[str, Array], HeadProblem | None]:
    """The head's arrays, or why it does not leave."""
    title, train = f"local.{config.title}", table.sides["train"]
    if config.kind not in place.heads_may_leave:
        log.warn(f"head {title} stays here: policy.heads_may_leave does not list {config.kind}")
        return {}, "may_not_leave"
    if len(train.labels_N):
        require_many(train.features_NF.astype(np.float64), train, place.max_patient_share)
    try:
        fitted = below("head", fit(config, train.features_NF, table, plan, place))
        travelling.read(config, fitted, len(plan.study.classes))
    except HeadUnavailable as error:
        return {}, unavailable(title, error).problem
    except HeadTooLarge as error:
        log.warn(f"head {title} stays here: {error}")
        return {}, "too_large"
    except WireError as error:
        log.warn(f"head {title} stays here: {error}")
        return {}, "failed"
    with_features = ", with features of single images" if travelling.holds_features(config) else ""
    log.event(f"head {title} leaves for the other sites{with_features}")
    return fitted, None


def of_others(
    plan: wire.HeadPlan, step: head_steps.ScoreStep, heads: HeadsConfig, test: Features
) -> dict[str, Floats | HeadProblem]:
    """By title of a head that came: its probabilities of these images, or why it has none. Raises WireError."""
    known, classes = {head.title: head for head in heads.local}, len(plan.study.classes)
    found: dict[str, Floats | HeadProblem] = {}
    for head in step.travelling:
        scorer = travelling.read(known[head.name], below(f"head/{head.title}", plan.arrays), classes)
        if len(test.labels_N) and scorer.view.width_before != test.features_NF.shape[1]:
            log.warn(f"head {head.title} was fitted on features of another width than this site's")
            found[head.title] = "other_features"
            continue
        found[head.title] = scorer.probabilities(test.features_NF) if len(test.labels_N) else test.logits_NC
    return found
