"""Statistics of batch normalisation, measured on the images of a source that training has not seen, without labels
(AdaBN, Li et al. 2016, arXiv:1603.04779). Weights stay as they are.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from client.images import Images
from client.training.hardware.precision import Precision, autocast, weights_dtype
from common.errors import ConfigError, SiteDataError

FEWEST_IMAGES = 16
"""Images from which statistics are worth more than those of the training."""

_BATCH = 64


def adapt_statistics(
    model: nn.Module,
    images: Images,
    device: torch.device,
    precision: Precision,
    among: Collection[str] | None = None,
) -> int:
    """Measure the running means and variances of `model` again on `images`; returns how many layers have some.

    `among` names the tensors that may change; None: all statistics.

    The mean over batches, each by its images. Raises ConfigError for a network without such layers, SiteDataError for
    fewer than `FEWEST_IMAGES` images.
    """
    layers = [
        layer
        for path, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and (among is None or (f"{path}.running_mean" if path else "running_mean") in among)
    ]
    num_images = len(images.labels_N)
    if not layers:
        raise ConfigError(
            "this network has no batch normalisation, so there are no statistics to adapt; predict without that"
        )
    if num_images < FEWEST_IMAGES:
        raise SiteDataError(
            f"found {num_images} image(s) to adapt to, expected {FEWEST_IMAGES} or more of the same source"
        )
    seen = 0
    with torch.no_grad(), _in_training(layers):
        # Parts of nearly one size: a last batch of one image would have no variance.
        for part_B in torch.arange(num_images).tensor_split(-(-num_images // _BATCH)):
            seen += len(part_B)
            for layer in layers:
                layer.momentum = len(part_B) / seen
            batch_BCHW = images.batch(part_B, None).to(device, weights_dtype(precision))
            with autocast(precision, device):
                model(batch_BCHW)
    return len(layers)


@contextmanager
def _in_training(layers: list[_BatchNorm]) -> Iterator[None]:
    """Have these layers measure, and no other."""
    before = [(layer, layer.training, layer.momentum) for layer in layers]
    try:
        for layer in layers:
            layer.train()
        yield
    finally:
        for layer, training, momentum in before:
            layer.train(training)
            layer.momentum = momentum
