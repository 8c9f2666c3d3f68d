"""Calibration counts of the sites in the test at the end: which are admitted."""

from collections.abc import Sequence

from common import wire
from common.errors import UpdateRejected
from common.metrics.calibration import CalibrationCounts


def admit(
    plan: wire.RoundPlan, answer: wire.RoundAnswer, validation_counts: Sequence[int]
) -> CalibrationCounts | None:
    """The counts in an answer, if any; a site may keep them back. Raises UpdateRejected.

    `validation_counts` are the site's validation images by class, as it enrolled with them.
    """
    counts = answer.calibration
    if counts is None:
        return None
    if not is_asked(plan):
        raise UpdateRejected("calibration counts came along, and the plan does not ask for any")
    if list(counts.images_C) != list(validation_counts):
        raise UpdateRejected(
            f"its calibration counts are over {list(counts.images_C)} validation images by class, expected "
            f"{list(validation_counts)} as enrolled"
        )
    return counts


def is_asked(plan: wire.RoundPlan) -> bool:
    """Whether the plan is the test at the end of a study with `calibration`, to a training site."""
    ends = not plan.train and "test" in plan.score
    return plan.study.calibration is not None and ends and plan.site in plan.study.sites.train
