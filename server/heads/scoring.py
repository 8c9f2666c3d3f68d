"""Scores of the heads: every site scores all heads on its own images, and the server checks the counts.

Heads of earlier rounds are scored on validation images, those of the chosen weights on test images.
"""

from collections.abc import Sequence

from common import wire
from common.config import StudyConfig
from common.config.heads import SOFTMAX
from common.config.types import ScoredSide
from common.errors import UpdateRejected
from common.heads import FittedHead, under
from common.heads.result import HeadResult
from common.wire import head_steps
from server.heads.calls import HeadCalls


def scored(
    study: StudyConfig, calls: HeadCalls, names: Sequence[str], heads: Sequence[FittedHead], side: ScoredSide
) -> dict[str, tuple[HeadResult, ...]]:
    """Results on one side of every named site whose answer is admitted, in the order of site names."""
    assert study.heads is not None
    known = {SOFTMAX, *study.heads.titles}

    def admit(site: str, answer: wire.HeadAnswer) -> None:
        expected = list(calls.cohort.counts(site, side))
        for result in answer.results:
            if result.title not in known:
                raise UpdateRejected("it scored a head that the study does not list")
            if result.score is not None and list(result.score.images_C) != expected:
                raise UpdateRejected(
                    f"its score of {result.title} is over other {side} images than it enrolled with"
                )
            if result.paired is not None and result.paired.right_C4.sum(axis=1).tolist() != expected:
                raise UpdateRejected(f"its comparison of {result.title} is over other {side} images")
        if [result.title for result in answer.results].count(SOFTMAX) != 1:
            raise UpdateRejected("it did not score the softmax once")

    step = head_steps.ScoreStep(side=side, heads=tuple(head.form for head in heads))
    arrays = {
        name: a for head in heads for name, a in under(f"head/{head.form.title}", head.arrays()).items()
    }
    answers = calls.ask(names, step, arrays, admit)
    return {site: answer.results for site, answer in answers.items()}
