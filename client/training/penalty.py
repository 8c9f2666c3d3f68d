"""Penalties: what an algorithm adds to the loss of a site; the training loop itself never changes.

A penalty is a function of the model, called once per optimizer step. FedProx has one, and SCAFFOLD's correction
of every gradient is the gradient of one. What the other algorithms change happens on the server.
"""

from collections.abc import Callable
from typing import TypeAlias, assert_never

import numpy as np
import torch
from torch import Tensor, nn

from common.config import (
    Algorithm,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedNova,
    FedProx,
    FedYogi,
    Scaffold,
)
from common.weights import Arrays

Penalty: TypeAlias = Callable[[nn.Module], Tensor]


def build_penalty(algorithm: Algorithm, model: nn.Module, correction: Arrays | None = None) -> Penalty | None:
    """The penalty of `algorithm` around the weights of `model` as they are now, or None.

    FedProx with mu = 0 has none, so it equals FedAvg bit for bit. `correction` is SCAFFOLD's
    (`control_variates.py`).
    """
    match algorithm:
        case FedProx(mu=mu, squared=squared):
            return proximal(model, mu, squared) if mu > 0 else None
        case Scaffold():
            return linear(model, correction) if correction else None
        case FedAvg() | FedNova() | FedAvgM() | FedAdam() | FedYogi() | FedAdagrad():
            return None
        case _:
            assert_never(algorithm)


def proximal(model: nn.Module, mu: float, squared: bool = True) -> Penalty:
    """FedProx: mu/2 * ||w - w_received||² over trainable weights (Li et al. 2020, arXiv:1812.06127).

    Copies the weights of `model` as they are now, so call it before training starts, after
    `freeze`. `squared=False` gives mu/2 * ||w - w_received||, as the paper's lab computes it.
    """
    received = {name: weight.detach().clone() for name, weight in _trainable(model)}

    def penalty(model: nn.Module) -> Tensor:
        squares = [(weight - received[name]).square().sum() for name, weight in _trainable(model)]
        distance = torch.stack(squares).sum()
        return mu / 2 * (distance if squared else _root(distance))

    return penalty


def linear(model: nn.Module, gradient: Arrays) -> Penalty:
    """A penalty whose gradient is `gradient`, by parameter, wherever the weights are."""
    by_name = dict(_trainable(model))
    held = {name: torch.from_numpy(np.array(array)).to(by_name[name]) for name, array in gradient.items()}

    def penalty(model: nn.Module) -> Tensor:
        products = [(weight * held[name]).sum() for name, weight in _trainable(model) if name in held]
        return torch.stack(products).sum()

    return penalty


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def _root(square: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0; autograd's is NaN, and training starts at 0."""
    moved = square > 0
    return torch.where(moved, torch.where(moved, square, 1).sqrt(), 0)
