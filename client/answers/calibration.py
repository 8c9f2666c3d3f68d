"""Calibration counts of a site: how surely the chosen weights find the class of its validation images.

They leave once, with the test at the end of a study that asks for them, and only from a training site.
"""

import numpy as np
import numpy.typing as npt
import torch

from client.config.policy import PolicyConfig
from client.governance.policy import allows_calibration
from client.study_setup import StudySetup
from client.training import evaluate
from common import wire
from common.metrics import Score, empty
from common.metrics.calibration import CalibrationCounts, calibration_counts


def is_due(plan: wire.RoundPlan) -> bool:
    """Whether the plan is the test at the end of a study with `calibration`, at a training site."""
    ends = not plan.train and "test" in plan.score
    return plan.study.calibration is not None and ends and plan.site in plan.study.sites.train


def counts(
    plan: wire.RoundPlan, setup: StudySetup, policy: PolicyConfig, device: torch.device
) -> CalibrationCounts | None:
    """Counts of the model as it is now; None where they are not due, not allowed, or without a validation image.

    Raises what `evaluate.evaluate` raises.
    """
    if not is_due(plan) or not allows_calibration(policy):
        return None
    images = setup.store.images("validation", augmentation="none")
    if len(images.labels_N) == 0:
        return None
    num_classes, found = len(plan.study.classes), list[CalibrationCounts]()

    def counting(probabilities_NC: npt.NDArray[np.float64], labels_N: npt.NDArray[np.int64]) -> Score:
        found.append(calibration_counts(probabilities_NC, labels_N, policy.histogram_bins))
        return empty(num_classes)

    evaluate.evaluate(
        setup.model,
        images,
        num_classes=num_classes,
        device=device,
        precision=plan.study.local.precision,
        most_at_once=setup.most_at_once,
        counting=counting,
    )
    return found[0]
