"""Settings of the outlier score: how unlike the training images an image is."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from common.settings import Frozen

if TYPE_CHECKING:
    from common.config.study import StudyConfig


class OutOfDistributionConfig(Frozen):
    """An outlier score of images, from the sums of the study's discriminant (`federated.lda`)."""

    shrinkage: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the features' covariance that is replaced by its mean variance. More makes the score depend less on
    features that hardly vary in the training images, of which few images tell little."""
    flagged: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Largest share of images like the validation images that `predict` flags as unlike the training images."""
    least_images: Annotated[int, Field(ge=20)] = 50
    """Fewest validation images, of all training sites together, from which the flag has its limit. With fewer there is
    a score and no flag, and the report says so."""


def wrong_out_of_distribution(study: "StudyConfig") -> str | None:
    """Why this study cannot have an outlier score, or None."""
    if study.privacy is not None:
        return "counts validation images without noise, which does not go with privacy; leave out_of_distribution out"
    return None
