"""Admission of updates: checks of every answer before anything is added up.

One NaN, one broadcast shape or one inflated weight is enough to spoil a model for every hospital. So nothing
that a site sends is trusted: it is compared with the plan that was sent and with the site's enrolment. A
refusal costs the site its vote, and not the study its round. It says what was found and what was expected; the
caller that logs it adds the site's name.

Most checks need one answer alone. Whether a delta is too long for its round needs all of them. It is checked
when all sites have answered, for all at once, so that the order does not matter.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from common.config import AdmissionConfig, Attribute, OwnModel, TransportConfig
from common.config.subgroups import titles
from common.config.types import ScoredSide
from common.errors import UpdateRejected, WireError
from common.masking.tables import IMAGES, SCORES, num_words
from common.metrics import Score
from common.metrics.replicates import num_columns
from common.metrics.subgroups import SubgroupCounts
from common.weights import Arrays, Layout, mismatch
from common.wire import RoundAnswer, compact
from server.aggregation.tally import LARGEST_SUMMAND, AdmittedUpdate

VARIANCE = "running_var"
"""End of the name of a running variance, as PyTorch's normalisation layers call it."""

LEAST_TO_COMPARE = 3
"""Updates of a round from which on their norms are compared."""

LARGEST_NORM = 1e150
"""Largest norm whose square, which rules and bounds need, is still a finite number."""


def admit(
    answer: RoundAnswer,
    *,
    site: str,
    plan_id: str,
    round: int,  # noqa: A002  (the field's word)
    layout: Layout,
    train_count: int,
    max_norm: float | None = None,
    received: Arrays | None = None,
    possible_steps: range | None = None,
    weight: int | None = None,
    is_private: bool = False,
) -> AdmittedUpdate:
    """The update in `answer`. Raises UpdateRejected.

    `site`, `plan_id` and `round` are those of the plan that was sent; `train_count` is the
    number of training images the site enrolled with, and `received` are the weights of the plan. `weight` counts in
    place of the images, `possible_steps` are those that so many images can be trained in. `is_private`: the study
    has privacy, so the answer has an epsilon and no loss.
    """
    reason = (
        _wrong_plan(answer, site, plan_id, round)
        or _wrong_tensors(answer.delta, layout)
        or _wrong_counts(answer, train_count, possible_steps, is_private=is_private)
        or _wrong_variances(answer.delta, layout, received or {})
    )
    if reason is not None:
        raise UpdateRejected(reason)
    running = frozenset(name for name, spec in layout.items() if spec.role == "statistic")
    update = AdmittedUpdate(
        site=site,
        num_examples=answer.num_examples if weight is None else weight,
        delta=answer.delta,
        statistics=running,
        num_steps=answer.num_steps,
    )
    most = LARGEST_NORM if max_norm is None else min(max_norm, LARGEST_NORM)
    if not update.norm <= most:
        raise UpdateRejected(f"its norm is {update.norm:.4g}, expected at most {most:.4g}")
    if not update.statistics_norm <= LARGEST_NORM:
        raise UpdateRejected(
            f"its running statistics change by {update.statistics_norm:.4g}, expected at most {LARGEST_NORM:.4g}"
        )
    if (largest := max(update.norm, update.statistics_norm)) * update.num_examples > LARGEST_SUMMAND:
        raise UpdateRejected(
            f"its norm {largest:.4g} times its {update.num_examples} examples is more than the running sum "
            f"has room for, {LARGEST_SUMMAND:.4g}"
        )
    return update


def admit_masked(answer: RoundAnswer, layout: Layout) -> AdmittedUpdate:
    """The masked update in `answer`, which has been compared with its plan. Raises UpdateRejected.

    Numbers under a mask look random, so only their form is checked here.
    """
    delta = {name: array for name, array in answer.delta.items() if not name.startswith(f"{SCORES}/")}
    _require_form(delta, {IMAGES: (1,), **{name: (2, *spec.shape) for name, spec in layout.items()}})
    if answer.num_examples or answer.num_steps:
        raise UpdateRejected(
            "its number of images or steps came without a mask; install the same version on all sides"
        )
    return AdmittedUpdate(answer.site, 0, delta)


def admit_masked_scores(answer: RoundAnswer, sides: Sequence[ScoredSide], num_classes: int) -> Arrays:
    """The masked tables of scores in `answer`, by name. Raises UpdateRejected."""
    tables = {name: array for name, array in answer.delta.items() if name.startswith(f"{SCORES}/")}
    _require_form(tables, {f"{SCORES}/{side}": (num_words(num_classes),) for side in sides})
    if sides and answer.score_bins is None:
        raise UpdateRejected("it does not say how many bins its scores have")
    return tables


def _require_form(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
    form = {name: (shape, "uint64") for name, shape in shapes.items()}
    found = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    if found != form:
        odd = sorted(name for name in form.keys() | found.keys() if form.get(name) != found.get(name))[0]
        raise UpdateRejected(f"{odd[:200]} is not masked as the study's layout says")


def unpacked(answer: RoundAnswer, layout: Layout, transport: TransportConfig | None) -> RoundAnswer:
    """The answer with the numbers that its compact delta stands for. Raises UpdateRejected, before it is unpacked."""
    form = compact.up(transport)
    if not form.is_compact:
        return answer
    try:
        return answer.model_copy(update={"delta": compact.unpack(answer.delta, layout, form)})
    except WireError as error:
        raise UpdateRejected(str(error)) from error


def too_long(
    norms: Mapping[str, float],
    config: AdmissionConfig,
    what: str = "its norm is",
    of_one_class: Collection[str] = (),
) -> dict[str, str]:
    """Why the updates of some sites are refused beside the others of their round, by site.

    Each norm is compared with the median of the *others*. All are judged before any is left out. Two are not
    compared: a site that sends next to nothing would have the other one refused. So would many sites with images
    `of_one_class`: under their own prior they have nothing to learn. Where the median of the others that do learn is
    larger, it is the measure; of two in the middle the smaller one. It only ever allows more than the median of all,
    and one learning site is enough of it, so no number of sites of one class lets a norm pass unseen.
    """
    ratio = config.max_norm_ratio
    if ratio is None or len(norms) < LEAST_TO_COMPARE:
        return {}
    reasons = {}
    for site, norm in sorted(norms.items()):
        others = {name: other for name, other in norms.items() if name != site}
        learning = [other for name, other in others.items() if name not in of_one_class]
        usual = max(statistics.median(others.values()), statistics.median_low(learning or [0.0]))
        if norm > ratio * usual:
            reasons[site] = (
                f"{what} {norm:.4g}, expected at most {ratio:g} times {usual:.4g}, the median of the "
                "round's other updates"
            )
    return reasons


def admit_scores(
    answer: RoundAnswer,
    *,
    site: str,
    plan_id: str,
    round: int,  # noqa: A002
    counts: Mapping[ScoredSide, Sequence[int]],
    own: Sequence[OwnModel] = (),
    subgroups: Mapping[str, Attribute] | None = None,
    replicates: bool = False,
    noise: float = 0.0,
) -> Mapping[ScoredSide, Score]:
    """The scores in `answer`. Raises UpdateRejected.

    `counts` are the images per class that the site enrolled with, on each side that the plan asked for, `own` the
    models of the site's own that are scored with the test, `subgroups` the attributes that the test may be counted by,
    `replicates` whether sums over test patients may come along. `noise` is what its scores of test images have in a
    study with privacy: they are of patients then, and need not fit the number of images. A loss that is not finite
    passes: it shows that the model diverged, and the site must be able to report this.
    """
    reason = _wrong_plan(answer, site, plan_id, round) or _wrong_sides(answer, counts)
    for side, expected in counts.items():
        reason = reason or _wrong_score(answer.scores[side], expected, side, noise if side == "test" else 0.0)
    if sorted(answer.own) != sorted(own):
        reason = reason or f"it scored {len(answer.own)} model(s) of its own, expected {len(own)}"
    for score in answer.own.values():
        reason = reason or _wrong_score(score, counts["test"], "test")
    for name, counted in answer.subgroups.items():
        reason = reason or _wrong_subgroups(name, counted, answer.scores.get("test"), subgroups or {})
    reason = reason or _wrong_replicates(answer, asked=replicates)
    if reason is not None:
        raise UpdateRejected(reason)
    return answer.scores


def _wrong_subgroups(
    name: str, counted: SubgroupCounts, test: Score | None, asked: Mapping[str, Attribute]
) -> str | None:
    if name not in asked or test is None:
        return f"it counts by {name}, expected counts by {', '.join(asked) or 'nothing'}"
    found, num_values = counted.confusion_VCC, len(titles(asked[name]))
    if found.shape != (num_values, *test.confusion_CC.shape):
        return (
            f"its counts by {name} have the shape {found.shape}, expected {num_values} values and "
            f"{len(test.confusion_CC)} classes"
        )
    if (found.sum(axis=0) > test.confusion_CC).any():
        return f"its counts by {name} are of more images than its score"
    return None


def _wrong_sides(answer: RoundAnswer, counts: Mapping[ScoredSide, Sequence[int]]) -> str | None:
    found, expected = sorted(answer.scores), sorted(counts)
    if found != expected:
        return f"it scored {' and '.join(found) or 'no'} images, expected {' and '.join(expected) or 'none'}"
    return None


def _wrong_replicates(answer: RoundAnswer, *, asked: bool) -> str | None:
    found = answer.replicates
    if found is None:
        return None
    if not asked:
        return "it sends sums over test patients, which were not asked for"
    score = answer.scores["test"]
    expected = num_columns(len(score.confusion_CC))
    if found.num_columns != expected:
        return f"its sums over test patients have {found.num_columns} columns, expected {expected}"
    if not 1 < found.num_patients <= score.num_images:
        return f"its sums are over {found.num_patients} test patients, expected 2 to {score.num_images}, its images"
    counts_C = score.confusion_CC
    totals = [*np.diag(counts_C), *counts_C.sum(axis=1), *counts_C.sum(axis=0), 2 * score.num_images]
    # A sum of squares is at most the square of the sum; the factor is for the noise of the replicates.
    most_V = 2 * np.array(totals, np.float64) + 1
    if np.any(found.sums_RV.std(axis=0) > most_V):
        return "its sums over test patients vary more than the counts of its score can"
    return None


def _wrong_plan(answer: RoundAnswer, site: str, plan_id: str, number: int) -> str | None:
    if answer.site != site:
        return f"it answers as {answer.site[:64]!r}, expected {site!r}"
    if answer.plan_id != plan_id and answer.round < number:
        return (
            f"it repeats an answer of round {answer.round} (plan {answer.plan_id}), expected one to plan "
            f"{plan_id} of round {number}"
        )
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


def _wrong_score(score: Score, expected: Sequence[int], side: ScoredSide, noise: float = 0.0) -> str | None:
    counts = list(score.images_C)
    if len(counts) != len(expected):
        return f"its score is over {len(counts)} classes, expected the study's {len(expected)}"
    if score.noise:
        return wrong_noise(score, noise)
    if counts != list(expected):
        return f"its score is over {counts} {side} images by class, expected {list(expected)} as enrolled"
    return None


def wrong_noise(score: Score, noise: float) -> str | None:
    """Why a score with noise is not what the study pays for, or None."""
    if not math.isclose(score.noise, noise, rel_tol=1e-6):
        return f"its score has noise of {score.noise:g}, expected {noise:g}"
    if score.histogram_C2B.any() or score.calibration_2K.any() or score.loss_sum or any(score.confidence_K):
        return "its score has noise on some of its counts alone"
    return None


def _wrong_counts(
    answer: RoundAnswer, train_count: int, possible_steps: range | None, *, is_private: bool
) -> str | None:
    if not 1 <= answer.num_examples <= train_count:
        return f"it claims {answer.num_examples} examples, expected 1 to {train_count} as enrolled"
    if answer.num_steps < 1:
        return f"it claims {answer.num_steps} steps, expected at least 1"
    if possible_steps is not None and answer.num_steps not in possible_steps:
        return (
            f"it claims {answer.num_steps} steps, expected {possible_steps.start} to {possible_steps.stop - 1} on the "
            "images it enrolled with"
        )
    if is_private:
        return _wrong_privacy(answer)
    if answer.train_loss is None or not math.isfinite(answer.train_loss):
        return f"its training loss is {answer.train_loss}, expected a finite number"
    return None


def _wrong_privacy(answer: RoundAnswer) -> str | None:
    if answer.epsilon is None or not math.isfinite(answer.epsilon):
        return f"its epsilon is {answer.epsilon}, expected a finite number in a study with privacy"
    if answer.train_loss is not None:
        return "its training loss came along without noise, in a study with privacy"
    return None


def _wrong_variances(delta: Arrays, layout: Layout, received: Arrays) -> str | None:
    """A variance below 0 has no square root: with it every site would compute nothing but NaN."""
    for name in sorted(received):
        spec = layout.get(name)
        if spec is None or spec.role != "statistic" or not (received[name] >= 0).all():
            continue
        # A running mean starts at 0 and may become negative; a variance is above 0 from the start.
        if name.endswith(VARIANCE) and not (received[name] + delta[name] >= 0).all():
            return f"{name} would be below 0, and it is a variance"
    return None
