"""Iterative inversion of a gradient into images, as an operator would do it who knows all that leaves.

Images are searched for whose gradient points the way of the one that was sent (cosine, Geiping et al. 2020,
arXiv:2003.14053), that are smooth (total variation), and whose running statistics of batch normalisation are those that
were sent (Yin et al. 2021, arXiv:2104.07586). The attacker is granted more than a server has: the labels of the batch,
no augmentation, one step of plain SGD in float64. B images of a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Seen:
    """What an operator takes from an answer to one step."""

    gradient: Mapping[str, Tensor]
    """By parameter."""
    statistics: Mapping[str, Tensor]
    """Running means and variances after the step, by name."""


def inverted(
    model: nn.Module,
    seen: Seen,
    labels_B: Tensor,
    size: int,
    *,
    steps: int,
    seed: int,
    total_variation: float = 1e-3,
    statistics: float = 0.1,
    lr: float = 0.1,
) -> Tensor:
    """Images (B, 3, size, size) in the model's normalised colours. `model` is as the trainer received it."""
    draws = torch.Generator().manual_seed(seed)
    guess_BCHW = torch.randn(
        len(labels_B), 3, size, size, generator=draws, dtype=torch.float32
    ).requires_grad_()
    model = model.float().train()
    names = [name for name, _ in model.named_parameters()]
    parameters = [parameter for _, parameter in model.named_parameters()]
    wanted = [seen.gradient[name].float() for name in names]
    norms = [
        (
            layer,
            seen.statistics[f"{path}.running_mean"].float(),
            seen.statistics[f"{path}.running_var"].float(),
        )
        for path, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    misses: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(_missed(mean_C, variance_C, misses))
        for layer, mean_C, variance_C in norms
    ]
    optimizer = torch.optim.Adam([guess_BCHW], lr=lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [steps * 3 // 8, steps * 5 // 8, steps * 7 // 8], 0.1
    )
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(steps):
        misses.clear()
        optimizer.zero_grad()
        found = torch.autograd.grad(cross_entropy(model(guess_BCHW), labels_B), parameters, create_graph=True)
        cost = 1 - _cosine(found, wanted) + total_variation * _variation(guess_BCHW)
        if misses:
            cost = cost + statistics * torch.stack(misses).mean()
        (guess_BCHW.grad,) = torch.autograd.grad(cost, [guess_BCHW])
        guess_BCHW.grad.sign_()  # as Geiping et al. do: the gradient's own length says little
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
    for hook in hooks:
        hook.remove()
    return guess_BCHW.detach()


def likeness(guess_BCHW: Tensor, images_NCHW: Tensor) -> Tensor:
    """Correlation (B, N) of each guess with each image, from -1 to 1."""
    guess, images = (_standard(rows.flatten(1).double()) for rows in (guess_BCHW, images_NCHW))
    return guess @ images.T / guess.shape[1]


def best_match(likeness_BN: Tensor) -> float:
    """Mean likeness when guesses and images are paired in the best way."""
    rows, columns = linear_sum_assignment(likeness_BN.numpy(), maximize=True)
    return float(likeness_BN[rows, columns].mean())


def _standard(rows: Tensor) -> Tensor:
    return (rows - rows.mean(1, keepdim=True)) / rows.std(1, unbiased=False, keepdim=True)


def _cosine(found: tuple[Tensor, ...], wanted: list[Tensor]) -> Tensor:
    product = sum((one * other).sum() for one, other in zip(found, wanted, strict=True))
    lengths = [torch.stack([one.square().sum() for one in side]).sum().sqrt() for side in (found, wanted)]
    return product / (lengths[0] * lengths[1])  # type: ignore[no-any-return]


def _variation(images_BCHW: Tensor) -> Tensor:
    down = (images_BCHW[:, :, 1:] - images_BCHW[:, :, :-1]).abs().mean()
    return down + (images_BCHW[:, :, :, 1:] - images_BCHW[:, :, :, :-1]).abs().mean()


def _missed(mean_C: Tensor, variance_C: Tensor, misses: list[Tensor]):  # type: ignore[no-untyped-def]
    """How far the statistics of a forward pass are from those of the batch that was sent."""

    def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
        (batch_BCHW,) = inputs
        over = (0, 2, 3)
        miss = (batch_BCHW.mean(over) - mean_C).square().mean() / (mean_C.square().mean() + 1e-6)
        misses.append(
            miss + (batch_BCHW.var(over) - variance_C).square().mean() / (variance_C.square().mean() + 1e-6)
        )

    return look
