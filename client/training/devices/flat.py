"""All trained weights of a model, or their gradient, as one flat tensor (W weights, in the order of the model)."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from client.training.devices.shared_memory import SharedMemory


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that gradients reach."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def size(parameters: Sequence[nn.Parameter]) -> int:
    """W, the number of weights."""
    return sum(parameter.numel() for parameter in parameters)


def in_memory(memory: SharedMemory, num_weights: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights and gradient (W each) in memory that two processes see."""
    weights_W = memory.view((num_weights,), dtype)
    return weights_W, memory.view((num_weights,), dtype, num_weights * dtype.itemsize)


@torch.no_grad()
def read(weights_W: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Put the weights into the parameters."""
    for parameter, piece in _pieces(weights_W, parameters):
        parameter.copy_(piece)


@torch.no_grad()
def write(parameters: Sequence[nn.Parameter], weights_W: Tensor) -> None:
    """Put the parameters where another process reads them."""
    if weights_W.device != parameters[0].device:  # one copy from GPU to GPU
        weights_W.copy_(nn.utils.parameters_to_vector(parameters))
        return
    for parameter, piece in _pieces(weights_W, parameters):
        piece.copy_(parameter)


@torch.no_grad()
def write_gradients(parameters: Sequence[nn.Parameter], gradient_W: Tensor) -> tuple[int, ...]:
    """Put the gradients where another process reads them. Returns the places of parameters that have none."""
    without = []
    for place, (parameter, piece) in enumerate(_pieces(gradient_W, parameters)):
        if parameter.grad is None:
            without.append(place)
        else:
            piece.copy_(parameter.grad)
    return tuple(without)


@torch.no_grad()
def add_gradients(gradient_W: Tensor, parameters: Sequence[nn.Parameter], without: Collection[int]) -> None:
    """Add the gradient of another device to that of the parameters, but for those that have none there."""
    for place, (parameter, piece) in enumerate(_pieces(gradient_W.to(parameters[0].device), parameters)):
        if place in without:
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter).copy_(piece)
        else:
            parameter.grad += piece


def _pieces(flat_W: Tensor, parameters: Sequence[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
    pieces = torch.split(flat_W, [parameter.numel() for parameter in parameters])
    return [
        (parameter, piece.view(parameter.shape)) for parameter, piece in zip(parameters, pieces, strict=True)
    ]
