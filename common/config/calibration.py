"""Settings of calibration: a temperature for the model's probabilities, and sets of classes with a stated coverage."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from common.settings import Frozen

if TYPE_CHECKING:
    from common.config.study import StudyConfig


class CalibrationConfig(Frozen):
    """Calibration of the chosen weights, from counts of the training sites' validation images."""

    least_images: Annotated[int, Field(ge=10)] = 50
    """Fewest validation images, of all training sites together, from which the model is calibrated. With fewer its
    probabilities stay as they are, and the report says so."""


def wrong_calibration(study: "StudyConfig") -> str | None:
    """Why this study cannot be calibrated, or None."""
    if study.privacy is not None:
        return "counts validation images without noise, which does not go with privacy; leave calibration out"
    if study.secure_aggregation is not None:
        return (
            "counts each site's validation images without a mask, which does not go with secure_aggregation; leave "
            "calibration out"
        )
    return None
