"""Checks of a model before a study with privacy: each image is followed alone, whatever else is in its batch.

The promise holds only if the gradient of a patient depends on no other patient. Batch normalisation is named, with
what to change. Any other layer that mixes a batch, and any layer whose gradients of single images Opacus gets wrong,
shows in numbers: two random images are computed together and alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from client.model.parameters import TensorNames, freeze, train_mode
from client.training.private.clipped_sum import gradients_of_images
from common.errors import ConfigError

_WHAT_TO_DO = (
    "Set model.batch_norm: frozen, model.trainable: head or a model.tuning (lora, adapter, linear_probe), or take an "
    "encoder with layer or group normalisation (vit, convnext)"
)
_TOLERANCE = 1e-2
"""Share of a tensor's gradient that float32 may lose between a batch and its images one by one."""
_SMALLEST = 1e-3
"""Share of the whole gradient's length that a tensor's is taken for at least, so that float32's own errors are none."""
_USUAL = 0.1
"""Typical entry of a tensor that is smaller while the model is checked."""


def require_gradients_of_patients(
    model: nn.Module, names: TensorNames, encoder: str, image_size: int
) -> None:
    """Raise ConfigError if a trained layer mixes the patients of a batch, or has no gradients of single images."""
    for path, layer in model.named_modules():
        if not isinstance(layer, BatchNorm):
            continue
        if f"{path}.running_mean" in names.trained:
            raise ConfigError(
                f"the study has privacy, and {encoder} trains with batch normalisation ({path}), which mixes the "
                f"patients of a batch. {_WHAT_TO_DO}."
            )
    freeze(model, names)
    device = next(model.parameters()).device
    images_BCHW = torch.randn((3, 3, image_size, image_size), generator=torch.Generator().manual_seed(0)).to(
        device, next(model.parameters()).dtype
    )
    with _without_dropout(model, names), _at_usual_sizes(model):
        if _mixes(model, images_BCHW):
            raise ConfigError(
                f"the study has privacy, and {encoder} mixes the images of a batch: what it says of one depends on the "
                f"others. {_WHAT_TO_DO}."
            )
        if (lost := _wrong(model, images_BCHW[:2])) is not None:
            raise ConfigError(
                f"the study has privacy, and the gradients of single images are not what they should be in {lost} of "
                f"{encoder}. {_WHAT_TO_DO}."
            )


@contextmanager
def _without_dropout(model: nn.Module, names: TensorNames) -> Iterator[None]:
    """The model as it trains, but for what is left to chance."""
    train_mode(model, names)
    for layer in model.modules():
        if "Drop" in type(layer).__name__:
            layer.eval()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()


@contextmanager
def _at_usual_sizes(model: nn.Module) -> Iterator[None]:
    """The model with other numbers in tensors that hold a path through it nearly shut, as LayerScale's 1e-6 and the
    zeros of a LoRA do: behind them no gradient could be seen to be wrong.
    """
    draws = torch.Generator().manual_seed(1)
    kept: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if float(parameter.square().mean().sqrt()) < _USUAL**2:
                kept[name] = parameter.detach().clone()
                parameter.copy_(_USUAL * torch.randn(parameter.shape, generator=draws))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])


def _mixes(model: nn.Module, images_BCHW: Tensor) -> bool:
    with torch.no_grad():
        one, other = (model(images_BCHW[[0, second]])[0] for second in (1, 2))
    return not torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE * float(one.abs().max()))


def _wrong(model: nn.Module, images_BCHW: Tensor) -> str | None:
    """The first parameter whose gradients of single images differ from those of the images alone, or None."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with gradients_of_images(model):
        _backward(model, images_BCHW)
        found = {name: getattr(parameter, "grad_sample", None) for name, parameter in trained.items()}
    found = {name: None if one is None else one.detach().clone() for name, one in found.items()}
    for image in range(len(images_BCHW)):
        model.zero_grad(set_to_none=True)
        _backward(model, images_BCHW[image : image + 1])
        alone = {name: parameter.grad for name, parameter in trained.items()}
        length = sum(float(one.square().sum()) for one in alone.values() if one is not None) ** 0.5
        for name, gradient in alone.items():
            together = found[name]
            difference = (0 if together is None else together[image]) - (0 if gradient is None else gradient)
            own = 0.0 if gradient is None else float(gradient.norm())
            allowed = _TOLERANCE * max(own, _SMALLEST * length)
            if isinstance(difference, Tensor) and float(difference.norm()) > allowed:
                return name
    return None


def _backward(model: nn.Module, images_BCHW: Tensor) -> None:
    logits_BC = model(images_BCHW)
    labels_B = torch.zeros(len(logits_BC), dtype=torch.int64, device=logits_BC.device)
    torch.autograd.backward(cross_entropy(logits_BC, labels_B, reduction="sum"))
