"""What a site may say of its images as a whole: bounds that hold for any data set, and no more.

Without Flower or torch, so that a report can be read and written anywhere.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from common.config import Share
from common.settings import Frozen

Extent = Annotated[int, Field(ge=1, le=2**20)]
"""Pixels of a side of an image."""


class Sizes(Frozen):
    """The smallest and the largest side, each way, of the images as they are stored."""

    width: tuple[Extent, Extent]
    height: tuple[Extent, Extent]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.width[0] > self.width[1] or self.height[0] > self.height[1]:
            raise ValueError("the smallest side is larger than the largest one")
        return self


class ImageSummary(Frozen):
    """What a site's images look like from afar, training and test images together."""

    sizes: Sizes | None
    """None: the site's policy counts too few patients to tell the ends of the range."""
    mean: tuple[Share, Share, Share]
    """Red, green, blue in [0, 1], over all pixels."""
    std: tuple[Share, Share, Share]
