"""The policy's second barrier: what an answer may hold before it leaves."""

from collections.abc import Iterator, Sequence

import numpy as np

from client.config import PolicyConfig
from client.governance.facts import RuleViolation
from client.governance.policy.violations import of_size, of_tensors, raise_if_any
from common import wire
from common.heads import travelling
from common.masking.tables import COUNTS, SCORES
from common.metrics import Score
from common.metrics.replicates import Replicates, least_patients
from common.wire import compact


def enforce_answer(answer: wire.Answer, size: int, policy: PolicyConfig, *, is_noisy: bool = False) -> None:
    """Check an answer of `size` bytes before it leaves. Raises PolicyRefusal. `is_noisy`: its counts have noise, so a
    small one tells nothing.

    A second barrier: it refuses nothing as long as the rest of the trainer is correct.
    """
    violations = [*of_size("max_mib_up", "an answer", size, policy.max_mib_up)]
    names = set(wire.arrays_of(answer)) - {compact.SCALES, compact.PLACES}
    violations += of_tensors(sorted(n for n in names if not n.startswith((f"{SCORES}/", COUNTS))), policy)
    kinds = set(travelling.left_in(sorted(wire.arrays_of(answer))).values())
    if stays := sorted(kinds - set(policy.heads_may_leave)):
        violations.append(
            RuleViolation("heads_may_leave", f"an answer holds a head of kind {stays[0]}", "may not leave")
        )
    if not is_noisy and any(0 < count < (policy.min_cell or 0) for count in _class_counts(answer)):
        violations.append(RuleViolation("min_cell", "an answer counts too few images", "left out too late"))
    cells = [cell for score in _scores(answer) for cell in _cells(score)]
    if not is_noisy and any(0 < cell < (policy.min_score_cell or 0) for cell in cells):
        violations.append(
            RuleViolation("min_score_cell", "a score counts too few images", "left out too late")
        )
    if isinstance(answer, wire.RoundAnswer) and answer.subgroups:
        violations += _wrong_subgroups(answer, policy)
        if is_noisy:
            violations.append(
                RuleViolation("privacy", "an answer counts by subgroup without noise", "none may leave")
            )
    if is_noisy and any(_is_exact(score) for score in _scores(answer)):
        violations.append(RuleViolation("privacy", "an answer holds scores without noise", "none may leave"))
    calibration = answer.calibration if isinstance(answer, wire.RoundAnswer) else None
    if calibration is not None and (is_noisy or not allows_calibration(policy)):
        violations.append(
            RuleViolation("calibration", "an answer holds calibration counts", "none may leave")
        )
    if getattr(answer, "outliers", None) is not None and (is_noisy or not allows_calibration(policy)):
        violations.append(
            RuleViolation("calibration", "an answer holds counts by outlier score", "none may leave")
        )
    if (replicates := getattr(answer, "replicates", None)) is not None:
        violations += _replicates(replicates, policy, is_noisy=is_noisy)
    if isinstance(answer, wire.OverlapAnswer) and not policy.overlap:
        violations.append(RuleViolation("overlap", "an answer holds hashes of images", "none may leave"))
    raise_if_any(violations)


def _wrong_subgroups(answer: wire.RoundAnswer, policy: PolicyConfig) -> Iterator[RuleViolation]:
    """Rows of subgroups, and what the score has beside them. A row has at least as many images as patients."""
    if not policy.subgroups:
        yield RuleViolation("subgroups", "an answer counts by subgroup", "none may leave")
    if "test" not in answer.scores:
        yield RuleViolation("min_subgroup", "a subgroup counts images that were not scored", "no test")
        return
    by_class_C = answer.scores["test"].confusion_CC.sum(axis=1)
    for counts in answer.subgroups.values():
        rows_VC = counts.confusion_VCC.sum(axis=2)
        shown_C = rows_VC.sum(axis=0)
        # Where no row of a class is shown, the rest is the class as the score has it.
        numbers = np.concatenate([rows_VC.ravel(), (by_class_C - shown_C)[shown_C > 0]])
        if ((numbers != 0) & (numbers < policy.min_subgroup)).any():
            yield RuleViolation("min_subgroup", "a subgroup counts too few images", "left out too late")


def allows_calibration(policy: PolicyConfig) -> bool:
    """Whether calibration counts may leave: not where the cells of scores are kept back, which they would tell."""
    return policy.calibration and policy.scores and policy.min_score_cell is None


def enforce_slopes(largest_share: float, policy: PolicyConfig) -> None:
    """Check a round that was trained. Raises PolicyRefusal if its change is mostly one patient's.

    `largest_share` is the largest of one patient in the slopes of the loss.
    """
    most = policy.max_patient_share
    if most is not None and not largest_share <= most:
        raise_if_any(
            [
                RuleViolation(
                    "max_patient_share",
                    "the change of the weights would be of too few patients",
                    f"{largest_share:.0%} of one, at most {most:.0%}",
                )
            ]
        )


def _replicates(replicates: Replicates, policy: PolicyConfig, *, is_noisy: bool) -> Iterator[RuleViolation]:
    """What forbids that these sums over test patients leave."""
    if is_noisy or not policy.intervals or not policy.scores or policy.min_score_cell is not None:
        yield RuleViolation("intervals", "an answer holds sums over test patients", "none may leave")
    num_classes = (replicates.num_columns - 1) // 3
    if replicates.num_patients < (least := least_patients(num_classes)):
        yield RuleViolation("intervals", "sums are over too few test patients", f"at least {least}")


def _class_counts(answer: wire.Answer) -> Sequence[int]:
    match answer:
        case wire.Enrolment():
            return [*answer.train_counts, *answer.validation_counts, *answer.test_counts]
        case wire.RoundAnswer():
            scored = [count for score in _scores(answer) for count in score.images_C]
            calibrated = () if answer.calibration is None else answer.calibration.images_C
            return [*scored, *calibrated, answer.num_examples]
        case wire.HeadAnswer():
            scored = [count for score in _scores(answer) for count in score.images_C]
            return [*answer.train_counts, *scored, sum(answer.outliers or ())]
        case wire.ApprovalAnswer() | wire.OverlapAnswer() | wire.MaskAnswer() | wire.Failure():
            return []


def _scores(answer: wire.Answer) -> list[Score]:
    if isinstance(answer, wire.HeadAnswer):
        return [result.score for result in answer.results if result.score is not None]
    return [*answer.scores.values(), *answer.own.values()] if isinstance(answer, wire.RoundAnswer) else []


def _is_exact(score: Score) -> bool:
    return score.noise == 0 and score.num_images > 0


def _cells(score: Score) -> list[int]:
    """Cells of every table of counts, and what is left out of each class."""
    tables = (score.confusion_CC, score.histogram_C2B, score.calibration_2K)
    return [*(int(cell) for table in tables for cell in table.ravel()), *score.left_out_C]
