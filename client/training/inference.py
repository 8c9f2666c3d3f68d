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
from client.training.hardware.out_of_memory import MostAtOnce, attempt, take_less
from client.training.hardware.precision import Precision, autocast, weights_dtype
from client.training.hardware.prefetch import Prefetcher, Prepared, on_host

Output = TypeVar("Output")


def infer(
    model: nn.Module,
    images: Images,
    compute: Callable[[Tensor], Output],
    *,
    device: torch.device,
    precision: Precision,
    activity: str,
    batch_size: int | None = None,
    most_at_once: MostAtOnce | None = None,
) -> list[Output]:
    """What `compute` returns for each batch of centre-cropped images, in order.

    `compute` gets images (B, C, H, W) on the device; it runs without gradients, under autocast. `activity`
    names the work in log lines and errors. `batch_size` is tried first; without one, as many images as the device
    usually takes. `most_at_once` remembers what fitted. The training mode of every module is left as it was.
    Raises TooLittleMemory if not one image fits, ConfigError if the device cannot compute in `precision`.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval().to(device, weights_dtype(precision))
    most = most_at_once or MostAtOnce()
    size = most.inference or batch_size or usual_batch_size(device)
    num_images, start = len(images.labels_N), 0
    outputs: list[Output] = []

    def prepare(span: tuple[int, int]) -> Prepared:
        return on_host(images, torch.arange(*span), None, device)

    try:
        with Prefetcher(prepare, device) as batches:
            while start < num_images:
                stop = min(start + size, num_images)
                following = (stop, min(stop + size, num_images)) if stop < num_images else None
                prepared = batches.get((start, stop), following)
                output = attempt(partial(_on_batch, prepared, stop - start, compute, device, precision))
                if output is None:
                    most.inference = size = take_less(size, activity)
                else:
                    outputs.append(output)
                    start = stop
        return outputs
    finally:
        for module, mode in modes.items():  # one by one: frozen layers may be in another mode
            module.training = mode


def usual_batch_size(device: torch.device) -> int:
    """Images at once where a study has not run out of memory yet: a GPU is filled, a CPU keeps a batch in its cache."""
    return 512 if device.type == "cuda" else 64


@torch.no_grad()  # not inference_mode: a compiled model would have to be compiled for it once more
def _on_batch(
    prepared: Prepared,
    num_images: int,
    compute: Callable[[Tensor], Output],
    device: torch.device,
    precision: Precision,
) -> Output:
    batch_BCHW = prepared.on_device((0, num_images), device, weights_dtype(precision))
    with autocast(precision, device):
        return compute(batch_BCHW)


def finite(rows_ND: Tensor) -> Tensor:
    """`rows_ND` with zeros in place of a row that has an entry which is not finite."""
    return torch.where(torch.isfinite(rows_ND).all(dim=1, keepdim=True), rows_ND, torch.zeros_like(rows_ND))
