"""Gradients of single images in batch normalisation whose statistics are frozen (`model.batch_norm: frozen`).

Opacus knows no batch normalisation, since in training it mixes the images of a batch. With frozen statistics an image
is scaled and shifted alone, and the gradient of scale and shift is a sum over its own positions.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

KINDS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
"""Layers that this file has a formula for. timm's last one has an activation of its own behind it."""


@contextmanager
def watched(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Within it, a backward pass leaves `grad_sample` in the scale and shift of layers with frozen statistics.

    Hides these parameters from Opacus, which would refuse the layers, until what it yields is called.
    """
    layers = [
        layer
        for layer in model.modules()
        if type(layer) in KINDS
        and not layer.training
        and any(p.requires_grad for p in layer.parameters(False))
    ]
    hidden = [p for layer in layers for p in layer.parameters(False) if p.requires_grad]
    hooks = [layer.register_forward_hook(_await_slopes) for layer in layers]

    def show() -> None:
        for parameter in hidden:
            parameter.requires_grad_(True)

    for parameter in hidden:
        parameter.requires_grad_(False)
    try:
        yield show
    finally:
        show()
        for hook in hooks:
            hook.remove()


def _await_slopes(layer: nn.Module, inputs: tuple[Tensor, ...], output_BC: Tensor) -> None:
    """A hook of the output and not of the layer: some networks write over what a layer gives."""
    if output_BC.requires_grad:
        output_BC.register_hook(partial(_keep, layer, inputs[0].detach()))  # type: ignore[no-untyped-call]


def _keep(layer: nn.Module, input_BC: Tensor, slopes_BC: Tensor) -> None:
    for parameter, found_BC in gradients_of_images(layer, input_BC, slopes_BC).items():
        former = getattr(parameter, "grad_sample", None)  # of a layer that is used twice
        parameter.grad_sample = found_BC if former is None else former + found_BC  # type: ignore[attr-defined]


def gradients_of_images(
    layer: nn.Module, input_BC: Tensor, slopes_BC: Tensor
) -> Mapping[nn.Parameter, Tensor]:
    """Per image the gradient of scale and shift, each B x C.

    `slopes_BC` is the loss's slope at the layer's output; it and the input are B x C and any positions.
    """
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, *(1,) * (slopes_BC.dim() - 2))
    centred_BC = input_BC - layer.running_mean.reshape(shape)
    scaled_BC = centred_BC * torch.rsqrt(layer.running_var + layer.eps).reshape(shape)
    if isinstance(layer, BatchNormAct2d):
        slopes_BC = _before_activation(layer, scaled_BC, slopes_BC)
    found = {}
    if layer.weight.requires_grad:
        found[layer.weight] = _over_positions(slopes_BC * scaled_BC)
    if layer.bias.requires_grad:
        found[layer.bias] = _over_positions(slopes_BC)
    return found


def _before_activation(layer: BatchNormAct2d, scaled_BC: Tensor, slopes_BC: Tensor) -> Tensor:
    with torch.enable_grad():
        shape = (1, -1, 1, 1)
        out_BC = scaled_BC * layer.weight.detach().reshape(shape) + layer.bias.detach().reshape(shape)
        out_BC.requires_grad_()
        active_BC = layer.act(layer.drop(out_BC.clone()))  # some activations write over what they get
        (before_BC,) = torch.autograd.grad(active_BC, out_BC, slopes_BC)
    return before_BC


def _over_positions(each_BC: Tensor) -> Tensor:
    return each_BC.flatten(2).sum(dim=2) if each_BC.dim() > 2 else each_BC
