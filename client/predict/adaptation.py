"""Adaptation to images of a source that training has not seen, without labels.

Statistics of batch normalisation are measured again on the source's own images (AdaBN, Li et al. 2016,
arXiv:1603.04779), and an image is classified as the mean over its views. Weights stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from client.data.decoding import decode
from client.images import Images
from client.training.hardware.precision import Precision, autocast, weights_dtype
from common.errors import ConfigError, SiteDataError

FEWEST_IMAGES = 16
"""Images from which statistics are worth more than those of the training."""

NUMBERS_OF_VIEWS = (1, 2, 4, 8)
_BATCH = 64


def require_views(number: int) -> int:
    """`number`, if an image can be shown in so many views. Raises ConfigError."""
    if number not in NUMBERS_OF_VIEWS:
        raise ConfigError(
            f"found {number} views of an image, expected {', '.join(map(str, NUMBERS_OF_VIEWS))}"
        )
    return number


def views(square_RRC: decode.Pixels, number: int) -> list[decode.Pixels]:
    """The image, its mirror image (2), both upside down (4), and all four turned by a quarter (8)."""
    shown = [square_RRC]
    if number >= 2:
        shown += [one[:, ::-1] for one in shown]
    if number >= 4:
        shown += [one[::-1] for one in shown]
    if number >= 8:
        shown += [np.rot90(one) for one in shown]
    return shown


def adapt_statistics(model: nn.Module, images: Images, device: torch.device, precision: Precision) -> int:
    """Measure the running means and variances of `model` again on `images`; returns how many layers have some.

    The mean over batches, each by its images. Raises ConfigError for a network without such layers, SiteDataError for
    fewer than `FEWEST_IMAGES` images.
    """
    layers = [
        layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None
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
