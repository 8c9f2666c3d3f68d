"""Inference on a set of images: one forward pass in evaluation mode, batch by batch.

Scoring and feature extraction differ only in what they compute from a batch, so both use this loop. A batch
that does not fit into the memory is halved, and so are those after it: no study has to guess a size that
fits every site's device.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from client.images import Images
from client.training.out_of_memory import attempt, take_less
from client.training.precision import Precision, autocast, weights_dtype

Output = TypeVar("Output")


def infer(
    model: nn.Module,
    images: Images,
    compute: Callable[[Tensor], Output],
    *,
    device: torch.device,
    precision: Precision,
    batch_size: int,
    activity: str,
) -> list[Output]:
    """What `compute` returns for each batch of centre-cropped images, in order.

    `compute` gets images (B, C, H, W) on the device; it runs without gradients, under autocast. `activity`
    names the work in log lines and errors. The training mode of every module is left as it was.
    Raises TooLittleMemory if not one image fits, ConfigError if the device cannot compute in `precision`.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval().to(device, weights_dtype(precision))
    outputs: list[Output] = []
    start = 0
    try:
        while start < len(images.labels_N):
            indices_B = torch.arange(start, min(start + batch_size, len(images.labels_N)))
            output = attempt(partial(_on_batch, images, indices_B, compute, device, precision))
            if output is None:
                batch_size = take_less(batch_size, activity)
            else:
                outputs.append(output)
                start += len(indices_B)
        return outputs
    finally:
        for module, mode in modes.items():  # one by one: frozen layers may be in another mode
            module.training = mode


@torch.no_grad()  # not inference_mode: a compiled model would have to be compiled for it once more
def _on_batch(
    images: Images,
    indices_B: Tensor,
    compute: Callable[[Tensor], Output],
    device: torch.device,
    precision: Precision,
) -> Output:
    batch_BCHW = images.batch(indices_B, None).to(device, weights_dtype(precision))
    with autocast(precision, device):
        return compute(batch_BCHW)
