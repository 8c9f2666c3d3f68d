"""Steps of fitting classical heads, as a `HeadPlan` names them."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from common.config import Name, StudyConfig
from common.config.types import ScoredSide
from common.heads import Fourier, HeadForm
from common.heads.needs import noisy_blocks
from common.heads.travelling import Travelling
from common.settings import Frozen


class ViewRequest(Frozen):
    """Request for sums over the training features, mapped by one view (`common/heads/view.py`)."""

    name: Name
    """Its arrays are `view/NAME/shift`, `scale` and, if it has them, `components`."""
    fourier: Fourier | None = None
    class_weights: tuple[Annotated[float, Field(ge=0)], ...]
    """Weight of an image in the second moments, by class."""
    squares: bool = False
    moments: Literal["none", "float32", "float64"] = "none"
    """Precision of the second moments; float32 is enough where they only guide the optimisation."""


def noisy_request(study: StudyConfig) -> ViewRequest:
    """The one request for sums with noise: of the features as they are, for all heads of the study together."""
    assert study.heads is not None
    blocks = noisy_blocks(study.heads)
    return ViewRequest(
        name="raw",
        class_weights=(1.0,) * len(study.classes),
        moments="float64" if "moments" in blocks else "none",
    )


class StatisticsStep(Frozen):
    """Send sums over the training images: per class and, where wanted, second moments."""

    kind: Literal["statistics"] = "statistics"
    views: tuple[ViewRequest, ...]
    """None: the features as they are, sums and squares."""


class Objective(Frozen):
    """One head that is fitted in several messages."""

    name: Name
    """Its view is `view/NAME/...`, and `points/NAME` (D + 1, C) is where it is to be evaluated; the last
    row is the bias."""
    loss: Literal["squared_hinge", "softmax"]
    fourier: Fourier | None = None
    class_weights: tuple[Annotated[float, Field(ge=0)], ...]


class GradientsStep(Frozen):
    """Send losses and gradients at these points, summed over the training images."""

    kind: Literal["gradients"] = "gradients"
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)]


class CoefficientsStep(Frozen):
    """Fit these linear heads of the study's votes on the training images and send their coefficients."""

    kind: Literal["coefficients"] = "coefficients"
    votes: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Names of votes in the study; the view of each is `view/NAME/...`."""


class TravelStep(Frozen):
    """Fit these local heads and send them as arrays, so that other sites can score them."""

    kind: Literal["travel"] = "travel"
    heads: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Titles under `heads.local` of the study, each with `travels`."""


class ScoreStep(Frozen):
    """Fit the study's local heads; score them, these heads and the softmax on the images of one side."""

    kind: Literal["score"] = "score"
    side: ScoredSide = "test"
    heads: tuple[HeadForm, ...]
    """Arrays of each are `head/TITLE/...`."""
    travelling: tuple[Travelling, ...] = ()
    """Sites' own heads that travel; arrays of each are `head/TITLE/...`."""
    choosing: bool = False
    """True: these are forms of a head, of which the server takes the best. Local heads are not fitted for that."""


class OutliersStep(Frozen):
    """Count the validation images by their outlier score (`common/heads/outliers.py`)."""

    kind: Literal["outliers"] = "outliers"
    """Arrays of what the score is computed with are `detector/...`."""


HeadStep: TypeAlias = Annotated[
    StatisticsStep | GradientsStep | CoefficientsStep | TravelStep | ScoreStep | OutliersStep,
    Field(discriminator="kind"),
]
