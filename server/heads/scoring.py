"""Scores of the heads: every site scores all heads on its own images, and the server checks the counts.

Heads of earlier rounds are scored on validation images, those of the chosen weights on test images. Under masks
there are the scores of all sites together alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add

from common import log, wire
from common.config import StudyConfig
from common.config.heads import SOFTMAX
from common.config.types import ScoredSide
from common.errors import UpdateRejected
from common.heads import FittedHead, under
from common.heads.result import HeadResult
from common.masking.tables import UNSCORED
from common.metrics import Score, figures, pooling
from common.weights import Array
from common.wire import head_steps
from server.heads.calls import HeadCalls
from server.heads.masked import MaskedSums
from server.heads.travel import Travelled
from server.rounds.admission import wrong_noise


def choose(
    calls: HeadCalls,
    trainers: Sequence[str],
    forms: Mapping[str, Sequence[FittedHead]],
    masks: MaskedSums | None = None,
) -> dict[str, FittedHead]:
    """The best form of each head by the validation images of all training sites together, by title.

    The first of equal ones, and of all where no site has validation images. Raises what `MaskedSums.scores` raises.
    """
    every = [form for listed in forms.values() for form in listed]
    step = head_steps.ScoreStep(side="validation", heads=tuple(form.form for form in every), choosing=True)
    if masks is not None:
        _, results = _together(calls, trainers, step, _arrays(every), masks)
        totals = {result.title: result.score for result in results if result.score is not None}
    else:
        totals = _totals(calls, trainers, step, every)
    chosen = {}
    for title, listed in forms.items():
        values = [_balanced(totals.get(form.form.title)) for form in listed]
        best = values.index(max(values))
        log.event(f"heads  {title}: form {best + 1} of {len(listed)} is best on validation images")
        chosen[title] = replace(listed[best], form=listed[best].form.model_copy(update={"title": title}))
    return chosen


def _together(
    calls: HeadCalls,
    names: Sequence[str],
    step: head_steps.ScoreStep,
    arrays: Mapping[str, Array],
    masks: MaskedSums,
) -> tuple[tuple[str, ...], tuple[HeadResult, ...]]:
    """The sites of a masked sum of scores, and the results of them together. Raises what `MaskedSums.scores` raises."""
    total = masks.scores(names, step, arrays)
    results: list[HeadResult] = []
    for head, failed in zip(step.heads, total.counts(UNSCORED), strict=True):
        if failed:
            results.append(HeadResult(title=head.title, problem="not_finite"))
        else:
            results.append(
                HeadResult(title=head.title, score=total.score(head.title, len(calls.study.classes)))
            )
    return total.sites, tuple(results)


def _totals(
    calls: HeadCalls, trainers: Sequence[str], step: head_steps.ScoreStep, every: Sequence[FittedHead]
) -> dict[str, Score]:
    """The score of all training sites together, by title of a form that all of them could score."""

    def admit(site: str, answer: wire.HeadAnswer) -> None:
        expected = list(calls.cohort.counts(site, "validation"))
        titles = [SOFTMAX, *(form.form.title for form in every)]
        if sorted(result.title for result in answer.results) != sorted(titles):
            raise UpdateRejected("it scored other heads than it was asked for")
        for result in answer.results:
            if result.score is not None and list(result.score.images_C) != expected:
                raise UpdateRejected(
                    f"its score of {result.title} is over other validation images than it enrolled with"
                )

    answers = calls.ask(trainers, step, _arrays(every), admit)
    scores: dict[str, list[Score]] = {}
    for answer in answers.values():
        for result in answer.results:
            if result.score is not None:
                scores.setdefault(result.title, []).append(result.score)
    # A form that a site could not score is no choice: the others are compared on the same images.
    return {title: reduce(add, each) for title, each in scores.items() if len(each) == len(answers)}


def _balanced(score: Score | None) -> float:
    value = math.nan if score is None else figures(score).balanced_accuracy
    return -1.0 if math.isnan(value) else value


def _arrays(heads: Sequence[FittedHead]) -> dict[str, Array]:
    return {name: a for head in heads for name, a in under(f"head/{head.form.title}", head.arrays()).items()}


def scored(
    study: StudyConfig,
    calls: HeadCalls,
    names: Sequence[str],
    heads: Sequence[FittedHead],
    travelled: Travelled,
    side: ScoredSide,
) -> dict[str, tuple[HeadResult, ...]]:
    """Results on one side of every named site whose answer is admitted, in the order of site names."""
    assert study.heads is not None
    known = {SOFTMAX, *study.heads.titles, *(head.title for head in travelled.heads)}

    def admit(site: str, answer: wire.HeadAnswer) -> None:
        expected = list(calls.cohort.counts(site, side))
        for result in answer.results:
            if result.title not in known:
                raise UpdateRejected("it scored a head that the study does not list")
            noise = study.noise_of_scores(site, 1 + len(heads)) if side == "test" else 0.0
            if result.score is not None and (wrong := _wrong(result, expected, side, noise)) is not None:
                raise UpdateRejected(wrong)
            if result.paired is not None and result.paired.right_C4.sum(axis=1).tolist() != expected:
                raise UpdateRejected(f"its comparison of {result.title} is over other {side} images")
        if [result.title for result in answer.results].count(SOFTMAX) != 1:
            raise UpdateRejected("it did not score the softmax once")

    step = head_steps.ScoreStep(
        side=side, heads=tuple(head.form for head in heads), travelling=travelled.heads
    )
    answers = calls.ask(names, step, {**_arrays(heads), **travelled.arrays}, admit)
    return {site: answer.results for site, answer in answers.items()}


def scored_together(
    calls: HeadCalls,
    names: Sequence[str],
    heads: Sequence[FittedHead],
    masks: MaskedSums,
) -> tuple[tuple[str, ...], tuple[HeadResult, ...]]:
    """The sites, and their results together on test images, from masked tables. Raises what `MaskedSums.scores` raises.

    The softmax is that of the closing evaluation, if it is over as many images of each class: asked for again, of other
    sites, its score would show the difference.
    """
    step = head_steps.ScoreStep(side="test", heads=tuple(head.form for head in heads))
    sites, results = _together(calls, names, step, _arrays(heads), masks)
    tested = calls.state.test_scores.get(pooling.POOLED)
    images = {tuple(result.score.images_C) for result in results if result.score is not None}
    if tested is not None and images == {tuple(tested.images_C)}:
        results = (HeadResult(title=SOFTMAX, score=tested), *results)
    return sites, results


def _wrong(result: HeadResult, expected: Sequence[int], side: ScoredSide, noise: float) -> str | None:
    assert result.score is not None
    if result.score.noise:
        return wrong_noise(result.score, noise)
    if list(result.score.images_C) != list(expected):
        return f"its score of {result.title} is over other {side} images than it enrolled with"
    return None
