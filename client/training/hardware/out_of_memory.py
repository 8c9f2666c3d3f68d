"""Running out of device memory: work continues with fewer images at once, and the log says so.

How much fits is known only to the device, and only when it is full. So no setting asks for a size that
fits: work starts with what the study asks for, which is halved until it fits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from common.errors import ConsiliumError
from common.log import warn

Result = TypeVar("Result")


@dataclass
class MostAtOnce:
    """How many images a device took at once, as far as a study has found out; None: no lack of memory so far."""

    training: int | None = None
    inference: int | None = None


class TooLittleMemory(ConsiliumError, MemoryError):
    """Not even one image fits; the data manager and the operator of the study must agree on less."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` is a lack of memory; some of torch's libraries show it in their text only."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def attempt(work: Callable[[], Result]) -> Result | None:
    """Result of `work`, None if the memory does not suffice; any other error is raised.

    The error ends here, before the caller frees memory: an error keeps the tensors of the failed try alive.
    """
    try:
        return work()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
    return None


def take_less(num_images: int, activity: str, note: str = "") -> int:
    """How many images to try next, after `num_images` at once did not fit.

    `activity` names the work, and `note` ends the line in the log. Raises TooLittleMemory after a single image.
    """
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use
    if num_images == 1:
        raise TooLittleMemory(
            f"{activity} does not fit into the memory even with a single image; expected room for at least one. "
            "Free the device of other work, or agree on a smaller model.image_size or encoder."
        )
    fewer = num_images // 2
    warn(f"out of memory: {activity} continues with {fewer} images at once{note}", images_at_once=fewer)
    return fewer
