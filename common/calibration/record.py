"""Calibration of a run as it is kept beside the weights: `calibration.json`.

The file goes with the run to hospitals and into exported models. Of each site it holds counts of validation images by
how surely their class was found, over all classes.
"""

from typing import Annotated

from pydantic import Field, StringConstraints

from common.calibration.conformal import ScoreCounts
from common.calibration.temperature import TemperatureFit
from common.config.types import Name
from common.settings import Frozen

FILE = "calibration.json"


class Calibration(Frozen):
    """Temperature and conformal counts of one set of weights, with its own softmax."""

    weights_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-z]{0,64}$")]
    """Digest of the shared weights that were calibrated."""
    after_round: Annotated[int, Field(ge=0)]
    """The round after which they stood."""
    fitted: TemperatureFit | None
    """None: too few validation images."""
    sites: dict[Name, ScoreCounts]
    """Training sites whose validation images are counted."""
    without: tuple[Name, ...] = ()
    """Training sites that sent no counts: by their policy, without validation images, or because they were silent."""

    @property
    def num_images(self) -> int:
        """Validation images of all sites."""
        return sum(one.num_images for one in self.sites.values())

    def describe(self) -> str:
        """Temperature and its basis, for a person."""
        if self.fitted is None:
            return f"not calibrated: {self.num_images} validation image(s) are too few"
        return (
            f"temperature {self.fitted.temperature:.3g} from {self.num_images} validation images of "
            f"{len(self.sites)} training site(s)"
        )
