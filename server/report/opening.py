"""The opening of the report: what was trained, by whom, how it ended.

It tells what the rounds on record hold, so a study that lost a site or ended early reads differently from its plan.
"""

from typing import assert_never

from common.config import (
    ExponentialAverage,
    GeometricMedian,
    Krum,
    LastRounds,
    Mean,
    Median,
    MultiKrum,
    StudyConfig,
    TrimmedMean,
)
from server.report.model_card import algorithm_name, model_kind
from server.report.outcome import Outcome
from server.report.plots import SYNTHETIC
from server.report.text import counted, escaped, listed
from server.rounds import selection


def opening(outcome: Outcome) -> str:
    """Title, banner and the first paragraphs."""
    study = outcome.study
    lines = [f"# {study.name}"]
    if outcome.synthetic:
        lines += [f"> **{SYNTHETIC.capitalize()}.**"]
    paragraphs = (_subject(outcome), _rounds(outcome), _evaluators(outcome), *_end(outcome))
    lines += [paragraph for paragraph in paragraphs if paragraph]
    return "\n\n".join(lines)


def _subject(outcome: Outcome) -> str:
    study, done = outcome.study, outcome.num_rounds
    kind = f"{model_kind(study)} for {len(study.classes)} classes ({', '.join(study.classes)})"
    if not study.rounds:
        given = "the first weights" if study.start_from is None else f"weights of {study.start_from.name}"
        scored = counted(len(outcome.final.sites) if outcome.final else 0, "site")
        return f"{kind} was scored by {scored}, and nothing was trained: it has {escaped(given)}."
    planned = f"{counted(len(study.sites.train), 'site')} in {counted(study.rounds, 'round')}"
    if not outcome.trained:
        return f"{kind} was to be trained by {planned}. No update of a site is on record."
    rounds = counted(done, "round") if done >= study.rounds else f"{done} of {study.rounds} rounds"
    return (
        f"{kind} was trained by {counted(len(outcome.trained), 'site')} in {rounds}, while every image stayed "
        "at its site."
    )


def _rounds(outcome: Outcome) -> str:
    """What a site does in a round, how the results are joined, and who did it; nothing without rounds."""
    study = outcome.study
    if not study.rounds:
        return ""
    local = study.local
    amount = (
        f"{local.num_epochs:g} epoch{'' if local.num_epochs == 1 else 's'}"
        if local.num_epochs is not None
        else counted(local.steps or 0, "step")
    )
    batch = (
        "all images of a site at once" if local.batch_size == "all" else f"up to {local.batch_size} images"
    )
    who = (
        "each training site"
        if study.sites.per_round is None
        else f"each of {study.sites.per_round} drawn training sites"
    )
    sentences = [
        f"In a round, {who} trains {amount} with {local.optimizer.kind}, learning rate "
        f"{local.optimizer.lr:g}, in batches of {batch}. The server joins the results by {joining(study)}."
    ]
    if outcome.trained:
        done = outcome.num_rounds
        counts = {site: outcome.num_trained(site) for site in study.sites.train}
        if study.sites.per_round is not None:
            fewest, most = min(counts.values()), max(counts.values())
            sentences.append(f"A site has an update in {fewest} to {most} of {counted(done, 'round')}.")
        elif all(count == done for count in counts.values()):
            sentences.append(f"{listed(study.sites.train)} trained in every round.")
        else:
            each = ", ".join(f"{site} in {count or 'none'} of {done}" for site, count in counts.items())
            sentences.append(f"Not every site has an update in every round: {each}.")
    return " ".join(sentences)


def joining(study: StudyConfig) -> str:
    """The algorithm, and the aggregation rule where it is not the weighted mean."""
    name, rule = algorithm_name(study.algorithm), study.aggregation
    match rule:
        case Mean():
            how = ""
        case TrimmedMean(trim=trim):
            how = f"the mean per coordinate without the largest and smallest {100 * trim:g} %"
        case Median():
            how = "the median per coordinate"
        case Krum():
            how = "Krum, which takes the update of one site in each round"
        case MultiKrum(num_selected=number):
            how = f"the mean of the {counted(number, 'update')} that Krum scores best"
        case GeometricMedian():
            how = "the geometric median, weighted by images"
        case _:
            assert_never(rule)
    if how:
        name = f"{name.removesuffix(' (their mean, weighted by images)')}, with {how} in place of the mean"
    if isinstance(rule, Mean | GeometricMedian) and rule.weigh_sites_by != "images":
        by = (
            "by its share of each class's images"
            if rule.weigh_sites_by == "classes"
            else "as much as any other"
        )
        name = f"{name.replace(', weighted by images', '')}; a site weighs {by}"
    if isinstance(rule, Mean | GeometricMedian) and study.largest_share < 1:
        name += f"; one site has at most {100 * study.largest_share:.0f} % of the weight"
    if rule.norm_clip is not None:
        name += f"; an update longer than {rule.norm_clip:g} is shrunk to it first"
    match study.averaging:
        case None:
            pass
        case ExponentialAverage(decay=decay):
            name += f"; the last weights are the exponential mean of all rounds' (decay {decay:g})"
        case LastRounds(rounds=rounds):
            name += f"; the last weights are the mean of the last {counted(rounds, 'round')}'"
        case _:
            assert_never(study.averaging)
    return name


def _evaluators(outcome: Outcome) -> str:
    """The sites that only score: those that did, those that did for a while, those that never did."""
    evaluate, unscored = outcome.study.sites.evaluate, outcome.unscored
    last = {
        site: model.after_round
        for record in outcome.rounds
        for model in (record.validation, record.test)
        if model is not None
        for site in model.sites
        if site in evaluate
    }
    sentences = []
    if whole := [site for site in evaluate if site in last and site not in unscored]:
        sentences.append(f"{listed(whole)} never trained and only scored the model.")
    for site in evaluate:
        if site in last and site in unscored:
            sentences.append(
                f"{site} never trained and scored the model until that after round {last[site]}. It did not score "
                f"the final model: {escaped(unscored[site])}."
            )
    never = outcome.never_there
    for site in (site for site in evaluate if site not in last and outcome.rounds):
        if not outcome.is_closed and site not in never:
            if outcome.ending is None:
                sentences.append(f"{site} never trains and scores the model at the end.")
            else:
                sentences.append(f"{site} was to score the model at the end, which the study did not reach.")
            continue
        reason = unscored.get(site) or never.get(site) or "no score is on record"
        sentences.append(f"{site} was to score the model and never did: {escaped(reason)}.")
    return " ".join(sentences)


def _end(outcome: Outcome) -> list[str]:
    """How the study ended, unless it is complete."""
    study, ending = outcome.study, outcome.ending
    paragraphs = []
    if ending is not None and ending.stage in ("failed", "stopped", "crashed"):
        named = {"failed": "failed", "stopped": "was stopped", "crashed": "broke off"}[ending.stage]
        paragraphs.append(f"**The study {named}: {escaped(ending.reason)}**")
    elif not outcome.is_closed:
        paragraphs.append("**The study had not ended when this was written.**")
    if outcome.is_incomplete:
        named = listed(list(outcome.unscored))
        paragraphs.append(f"**The study is incomplete: the final model has no score of {named}.**")
    best = outcome.rounds[-1].best if outcome.rounds else None
    if (
        outcome.is_closed
        and outcome.num_rounds < study.rounds
        and (early := selection.enough(study, best)) is not None
    ):
        paragraphs.append(f"The study's selection stopped it early: {early}.")
    return paragraphs
