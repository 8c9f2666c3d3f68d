"""Local optimizers."""

from collections.abc import Iterable
from typing import assert_never

import torch
from torch import nn

from common.config import training


def build_optimizer(
    parameters: Iterable[nn.Parameter], optimizer: training.Optimizer, device: torch.device | None = None
) -> torch.optim.Optimizer:
    """The optimizer with the study's settings. Weight decay applies to every parameter, norms and
    biases too, as in the paper's script. On a GPU a step is one kernel where torch has one."""
    fused = True if device is not None and device.type == "cuda" else None
    match optimizer:
        case training.Sgd(lr=lr, momentum=momentum, weight_decay=decay):
            return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=decay, fused=fused)
        case training.Adam(lr=lr, betas=betas, weight_decay=decay):
            return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=decay, fused=fused)
        case training.AdamW(lr=lr, betas=betas, weight_decay=decay):
            return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=decay, fused=fused)
        case training.Adagrad(lr=lr, weight_decay=decay):
            return torch.optim.Adagrad(parameters, lr=lr, weight_decay=decay)
        case training.Adadelta(lr=lr, weight_decay=decay):
            return torch.optim.Adadelta(parameters, lr=lr, weight_decay=decay)
        case training.RMSprop(lr=lr, momentum=momentum, weight_decay=decay):
            return torch.optim.RMSprop(parameters, lr=lr, momentum=momentum, weight_decay=decay)
        case _:
            assert_never(optimizer)
