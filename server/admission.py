"""May this update touch the model? Asked of every answer, before anything is added up.

One NaN, one broadcast shape or one inflated weight is enough to spoil a model for every
hospital, so nothing that a site sends is trusted: it is compared with the plan that was sent
and with what the site enrolled with. A refusal costs the site its vote, not the study its
round, and says what was found and what was expected; whoever logs it adds the site's name.
"""

import math

import numpy as np

from common.errors import UpdateRejected
from common.metrics import Score
from common.weights import Arrays, Layout, mismatch
from common.wire import RoundAnswer
from server.aggregation import AdmittedUpdate


def admit(
    answer: RoundAnswer,
    *,
    plan_id: str,
    round: int,  # noqa: A002  (the field's word)
    layout: Layout,
    train_count: int,
) -> AdmittedUpdate:
    """The update in `answer`. Raises UpdateRejected.

    `plan_id` and `round` are those of the plan sent to this site; `train_count` is the number
    of training images it enrolled with.
    """
    reason = (
        _wrong_plan(answer, plan_id, round)
        or _wrong_tensors(answer.delta, layout)
        or _wrong_counts(answer, train_count)
    )
    if reason is not None:
        raise UpdateRejected(reason)
    return AdmittedUpdate(site=answer.site, num_examples=answer.num_examples, delta=answer.delta)


def admit_score(
    answer: RoundAnswer,
    *,
    plan_id: str,
    round: int,  # noqa: A002
    num_images: int,
    num_classes: int,
) -> Score:
    """The score in `answer`. Raises UpdateRejected.

    `num_images` is the number of test images the site enrolled with. A loss that is not finite
    passes: it tells that the model diverged, which is the site's to report.
    """
    reason = _wrong_plan(answer, plan_id, round) or _wrong_score(answer.score, num_images, num_classes)
    if reason is not None:
        raise UpdateRejected(reason)
    return answer.score


def _wrong_plan(answer: RoundAnswer, plan_id: str, number: int) -> str | None:
    if answer.plan_id != plan_id:
        return f"it answers plan {answer.plan_id}, expected {plan_id}"
    if answer.round != number:
        return f"it is of round {answer.round}, expected round {number}"
    return None


def _wrong_tensors(delta: Arrays, layout: Layout) -> str | None:
    difference = mismatch(layout, delta)
    if difference is not None:
        return difference
    for name in sorted(delta):
        num_bad = delta[name].size - int(np.count_nonzero(np.isfinite(delta[name])))
        if num_bad:
            return (
                f"{num_bad} of {delta[name].size} entries of {name} are not finite; "
                "a smaller learning rate or clip_grad_norm may help"
            )
    return None


def _wrong_score(score: Score, num_images: int, num_classes: int) -> str | None:
    if len(score.confusion_CC) != num_classes:
        return f"its score is over {len(score.confusion_CC)} classes, expected the study's {num_classes}"
    if score.num_images != num_images:
        return f"its score is over {score.num_images} images, expected the {num_images} it enrolled with"
    return None


def _wrong_counts(answer: RoundAnswer, train_count: int) -> str | None:
    if not 1 <= answer.num_examples <= train_count:
        return f"it claims {answer.num_examples} examples, expected 1 to {train_count} as enrolled"
    if answer.num_steps < 1:
        return f"it claims {answer.num_steps} steps, expected at least 1"
    if answer.train_loss is None or not math.isfinite(answer.train_loss):
        return f"its training loss is {answer.train_loss}, expected a finite number"
    return None
