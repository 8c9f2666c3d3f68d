"""Steps towards heads that follow from `study.heads`.

The server asks for sums, gradients, coefficients and scores in an order of its own, but what it may ask for is
known from the study: the heads by name, how each is fitted, and what its step needs (`server/heads/fit.py`).
"""

from collections.abc import Iterator
from typing import assert_never

import numpy as np

from common import wire
from common.config.heads import (
    FederatedHead,
    HeadsConfig,
    Iterated,
    Logistic,
    NaiveBayes,
    RffSvm,
    Vote,
    candidates,
)
from common.heads import Fourier, HeadForm, below, travelling
from common.heads.needs import moments_of
from common.weights import Arrays
from common.wire import head_steps
from common.wire.head_steps import noisy_request

RAW, PCA = "raw", "pca"
"""Names of the views that are no head's own: the features as they are, and scaled before a reduction."""
POINT = "point "
"""Start of the name of a search's questions."""


def problems(plan: wire.HeadPlan, heads: HeadsConfig) -> Iterator[str]:
    """What of a step does not follow from the study's heads."""
    if plan.step.kind != "score" and plan.site not in plan.study.sites.train:
        yield "sums over training images are asked of a site that only scores"
    federated = {head.title: head for head in heads.federated}
    match plan.step:
        case head_steps.StatisticsStep(views=views):
            yield from _twice([view.name for view in views])
            for view in views:
                yield from _sums(plan, view, federated)
        case head_steps.GradientsStep(objectives=searches):
            yield from _twice([search.name for search in searches])
            for search in searches:
                yield from _gradients(plan, search, federated.get(search.name))
        case head_steps.CoefficientsStep(votes=votes):
            yield from _twice(list(votes))
            for name in votes:
                if not isinstance(federated.get(name), Vote):
                    yield f"coefficients of {name!r}, which is no vote of the study"
        case head_steps.TravelStep(heads=names):
            yield from _twice(list(names))
            travels = {head.title for head in travelling.asked(heads)}
            for name in names:
                if name not in travels:
                    yield f"the head {name!r}, which does not travel in the study"
        case head_steps.ScoreStep(heads=forms, travelling=travelled):
            yield from _twice([form.title for form in forms] + [head.title for head in travelled])
            yield from _travelled(plan, heads, travelled)
            if plan.step.choosing:
                yield from _choice(plan, plan.step, federated)
                return
            for form in forms:
                yield from _score(plan, form, federated.get(form.title.removeprefix("federated.")))
        case head_steps.OutliersStep():
            if plan.study.out_of_distribution is None:
                yield "outlier scores, which the study does not have"
        case _:
            assert_never(plan.step)


def is_due(plan: wire.HeadPlan) -> bool:
    """Whether the study fits heads after this round: the last one, and those that `heads.every` names."""
    study, every = plan.study, None if plan.study.heads is None else plan.study.heads.every
    return plan.round == study.rounds or (every is not None and plan.round > 0 and plan.round % every == 0)


def most_points(plan: wire.HeadPlan) -> Iterator[tuple[str, int]]:
    """By search in the plan: how many points the study allows."""
    if isinstance(plan.step, head_steps.GradientsStep) and plan.study.heads is not None:
        federated = {head.title: head for head in plan.study.heads.federated}
        for search in plan.step.objectives:
            if isinstance(head := federated.get(search.name), Iterated):
                # A search may start again from its point when a site drops out.
                yield search.name, 2 * head.most_messages


def questions(plan: wire.HeadPlan) -> Iterator[tuple[str, str, Arrays]]:
    """Each thing that a step asks for: its name, how, and at which arrays."""
    match plan.step:
        case head_steps.StatisticsStep(views=views):
            for view in views:
                how = view.model_dump_json()
                yield f"sums {view.name}", how, below(f"view/{view.name}", plan.arrays)
        case head_steps.GradientsStep(objectives=searches):
            for search in searches:
                points = {"points": plan.arrays[f"points/{search.name}"]} if _has_points(plan, search) else {}
                yield f"{POINT}{search.name}", search.model_dump_json(), points
                view_arrays = below(f"view/{search.name}", plan.arrays)
                yield f"view {search.name}", str(search.fourier), view_arrays
        case head_steps.CoefficientsStep(votes=votes):
            for name in votes:
                yield f"coefficients {name}", "", below(f"view/{name}", plan.arrays)
        case head_steps.TravelStep(heads=names):
            for name in names:
                yield f"head {name}", "", {}
        case head_steps.ScoreStep(heads=forms, travelling=travelled):
            arrays = below("head", plan.arrays)
            what = "choice" if plan.step.choosing else f"scores {plan.step.side}"
            yield what, " ".join(form.model_dump_json() for form in (*forms, *travelled)), arrays
        case head_steps.OutliersStep():
            yield "outlier scores", "", below("detector", plan.arrays)
        case _:
            assert_never(plan.step)


def _has_points(plan: wire.HeadPlan, search: head_steps.Objective) -> bool:
    return f"points/{search.name}" in plan.arrays


# --- one step ----------------------------------------------------------------------------------


def _sums(
    plan: wire.HeadPlan, view: head_steps.ViewRequest, federated: dict[str, FederatedHead]
) -> Iterator[str]:
    name = view.name
    if not federated:
        yield "sums, though the study has no federated head"
        return
    if plan.study.privacy is not None:
        if view != noisy_request(plan.study):
            yield "sums in another form than the one with noise"
        return
    if name == RAW:
        if view.fourier is not None or view.moments != "none" or below(f"view/{RAW}", plan.arrays):
            yield "sums of the features as they are, in another form"
        return
    if name.partition(".")[0] == PCA:
        reduced = {f"{PCA}.{head.scale}" for head in federated.values() if head.pca is not None}
        if name not in reduced or view.fourier is not None or view.squares:
            yield f"sums under {name!r}, which no head of the study needs"
        return
    head = federated.get(name)
    needed = None if head is None else moments_of(head)
    if head is None or needed is None:
        yield f"sums under {name!r}, which no head of the study needs"
        return
    if view.moments not in ("none", needed[0]) or (view.squares and not isinstance(head, NaiveBayes)):
        yield f"sums of {name!r} in more detail than the head needs"
    yield from _fourier(plan, name, view.fourier, head)


def _gradients(
    plan: wire.HeadPlan, search: head_steps.Objective, head: FederatedHead | None
) -> Iterator[str]:
    if not isinstance(head, Iterated):
        yield f"gradients of {search.name!r}, which no head of the study needs"
        return
    if search.loss != ("softmax" if isinstance(head, Logistic) else "squared_hinge"):
        yield f"gradients of {search.name!r} under another loss"
    yield from _fourier(plan, search.name, search.fourier, head)


def _score(plan: wire.HeadPlan, form: HeadForm, head: FederatedHead | None) -> Iterator[str]:
    if head is None or form.title != f"federated.{head.title}":
        yield f"scores of {form.title!r}, which is no head of the study"
        return
    expected = "vote" if isinstance(head, Vote) else "gaussian" if isinstance(head, NaiveBayes) else "linear"
    if form.form != expected:
        yield f"scores of {form.title!r} in another form"
    yield from _fourier(plan, form.title, form.fourier, head)


def _travelled(
    plan: wire.HeadPlan, heads: HeadsConfig, travelled: tuple[travelling.Travelling, ...]
) -> Iterator[str]:
    """What comes in are arrays of heads that the study has travel, of sites that train in it."""
    names = {head.title for head in travelling.asked(heads)}
    for head in travelled:
        if head.name not in names or head.owner not in plan.study.sites.train:
            yield f"scores of {head.title!r}, which does not travel in the study"


def _choice(
    plan: wire.HeadPlan, step: head_steps.ScoreStep, federated: dict[str, FederatedHead]
) -> Iterator[str]:
    """Forms of heads that the study chooses among, on validation images of the sites that train."""
    if step.travelling:
        yield "a choice among heads that travel"
    if step.side != "validation":
        yield f"a choice by {step.side} images"
    if plan.site not in plan.study.sites.train:
        yield "a choice by a site that only scores"
    known = {title for head in federated.values() for title in candidates(head)}
    for form in step.heads:
        if form.title not in known or form.form != "linear" or form.fourier is not None:
            yield f"scores of {form.title!r}, which the study does not choose among"


def _fourier(plan: wire.HeadPlan, name: str, fourier: Fourier | None, head: FederatedHead) -> Iterator[str]:
    if not isinstance(head, RffSvm):
        if fourier is not None:
            yield f"{name!r} under a map that the head does not have"
        return
    fits = (
        fourier is not None
        and fourier.seed == plan.study.seed % 2**32
        and fourier.num_components == head.num_components
        and (head.gamma == "scale" or np.isclose(fourier.gamma, head.gamma))
    )
    if not fits:
        yield f"{name!r} under another map than the study's"


def _twice(names: list[str]) -> Iterator[str]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name!r} is asked for twice"
