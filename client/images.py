"""Interface between model and data: how images are prepared, and how a batch is read.

The model side decides the preparation (it comes with the encoder), the data side carries it
out. Neither side depends on more of the other than this file.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field

from common.settings import Frozen


class Preprocessing(Frozen):
    """How an image becomes the encoder's input; stored with the weights."""

    image_size: Annotated[int, Field(ge=1)]
    """Pixels a side of what the encoder sees."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Per channel (RGB), for values in [0, 1]."""
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    crop_share: Annotated[float, Field(gt=0, le=1)] = 0.875
    """`image_size` over the side to which images are resized before the crop: 224/256."""

    @property
    def stored_size(self) -> int:
        """Side of the square that is kept of every image, from which crops are taken."""
        return round(self.image_size / self.crop_share)


class Images(Protocol):
    """Decoded images of one split of one site, in memory or mapped from a file."""

    @property
    def labels_N(self) -> torch.Tensor:
        """int64 class indices in the study's order."""

    def batch(self, indices_B: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """float32 (B, 3, S, S), normalised; augmented with `generator`'s draws, else centre-cropped."""


@dataclass(frozen=True)
class Finishing:
    """The device's part of a batch: some images are mirrored, all are normalised."""

    mean_C11: torch.Tensor
    std_C11: torch.Tensor

    def __call__(self, squares_BCSS: torch.Tensor, mirrored_B: torch.Tensor) -> torch.Tensor:
        """float32 (B, 3, S, S) from `squares`, on whatever device they are: `batch`, but for the last bit on a GPU."""
        mirrored_B111 = mirrored_B.to(squares_BCSS.device, non_blocking=True)[:, None, None, None]
        images_BCSS = torch.where(mirrored_B111, squares_BCSS.flip(3), squares_BCSS).to(torch.float32)
        mean_C11, std_C11 = self.mean_C11.to(images_BCSS.device), self.std_C11.to(images_BCSS.device)
        return images_BCSS.div_(255).sub_(mean_C11).div_(std_C11)


@runtime_checkable
class ImagesInTwoSteps(Images, Protocol):
    """Images whose batch is cut by the processor and finished by the device, so that few bytes are copied."""

    def squares(
        self, indices_B: torch.Tensor, generator: torch.Generator | None, *, pinned: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (B, 3, S, S), cut as in `batch`, and bool (B), which of them are to be mirrored.

        `pinned`: in memory that a GPU reads by itself.
        """

    @property
    def finishing(self) -> Finishing:
        """What is left to do with `squares`. It holds no image, so it may go to another process."""
