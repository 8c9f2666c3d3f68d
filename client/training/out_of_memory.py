"""When the device runs out of memory: take less at once, and say so.

How much fits is known only to the device, and only when it is full. So nobody has to guess a size:
work starts with what the study asks for and is halved until it fits.
"""

import torch

from common.errors import ConsiliumError
from common.log import warn


class TooLittleMemory(ConsiliumError, MemoryError):
    """Not even one image fits; the data manager and the operator of the study must agree on less."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` is a lack of memory; some of torch's libraries say so in their text only."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def take_less(num_images: int, doing: str, note: str = "") -> int:
    """How many images to try next, after `num_images` at once did not fit. Raises TooLittleMemory.

    `note` ends the line in the log.

    Call it outside of the `except` block: an error holds on to the tensors of the failed try.
    """
    torch.cuda.empty_cache()  # does nothing where CUDA is not in use
    if num_images == 1:
        raise TooLittleMemory(
            f"{doing} does not fit into the memory even with a single image; expected room for at least one. "
            "Free the device of other work, or agree on a smaller model.image_size or encoder."
        )
    fewer = num_images // 2
    warn(f"out of memory: {doing} goes on with {fewer} images at once{note}", images_at_once=fewer)
    return fewer
