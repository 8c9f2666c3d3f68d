"""The sum of a step over its patients, each shrunk to a length, with noise on it.

Opacus keeps the gradient of every image (`grad_sample`). Images come patient by patient, in pieces of any size. A
patient whose images are in two pieces stays open from one to the next, so the sum does not depend on the pieces.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from client.training.private import frozen_norm
from client.training.private.secure_random import SecureRandom
from common.errors import ConfigError

_EPSILON = 1e-6
"""Keeps a gradient that is as long as allowed just below that, whatever is rounded."""


@contextmanager
def gradients_of_images(model: nn.Module) -> Iterator[None]:
    """Within it, a backward pass leaves the gradient of each image in `grad_sample` of the trained parameters.

    Raises ConfigError for a model with a layer that has none.
    """
    from opacus.grad_sample import GradSampleHooks  # two seconds, which other studies need not wait

    with ExitStack() as stack:
        show = stack.enter_context(frozen_norm.watched(model))
        try:
            hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
        except NotImplementedError as error:
            raise ConfigError(
                f"the study has privacy, and a layer that is trained has no gradients of single images ({error}). Set "
                "model.trainable: head or a model.tuning (lora, linear_probe), or take another encoder."
            ) from error
        stack.callback(hooks.cleanup)
        show()
        # Opacus' convolutions read the numbers of an image from wrong places, and even from other images, where the
        # layer before has permuted the axes, as in ConvNeXt.
        for layer in model.modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                stack.callback(layer.register_forward_pre_hook(_in_order).remove)
        # Torch forbids activations that write over the output of a layer that is watched.
        for layer in [layer for layer in model.modules() if getattr(layer, "inplace", False) is True]:
            layer.inplace = False  # type: ignore[assignment]
            stack.callback(setattr, layer, "inplace", True)
        # Opacus computes a layer that it has no formula for once more, image by image; the quicker kernels of
        # attention cannot be followed there.
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # torch says so of the first layer that is trained. It is as it should be.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        yield


def _in_order(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.contiguous() for one in inputs)


class ClippedSum:
    """Adds up a step's patients. P patients of a piece."""

    def __init__(self, trained: Sequence[nn.Parameter], max_norm: float) -> None:
        self._trained, self._max_norm = list(trained), max_norm
        self.begin()

    def begin(self) -> None:
        """A step begins, perhaps once more."""
        self._sums = [torch.zeros_like(parameter, dtype=_width(parameter)) for parameter in self._trained]
        self._open: int | None = None
        self._rest: list[Tensor] = []
        self._forget()

    def add(self, patients_B: Tensor) -> None:
        """Take the gradients of a piece, whose images are of these patients."""
        found, places_B = torch.unique_consecutive(patients_B, return_inverse=True)
        gradients = [self._by_patient(p, places_B, len(found)) for p in self._trained]
        self._forget()
        if self._open is not None:
            if int(found[0]) == self._open:
                for gradient_P, rest in zip(gradients, self._rest, strict=True):
                    gradient_P[0] += rest
            else:
                self._close([rest[None] for rest in self._rest])
        self._close([gradient_P[:-1] for gradient_P in gradients])
        self._open = int(found[-1])
        self._rest = [gradient_P[-1].clone() for gradient_P in gradients]

    def end(self, noise: float, divisor: float, random: SecureRandom) -> None:
        """Leave (sum + `noise` * `max_norm` * normal numbers) / `divisor` in the parameters as their gradient."""
        if self._open is not None:
            self._close([rest[None] for rest in self._rest])
            self._open, self._rest = None, []
        for parameter, total in zip(self._trained, self._sums, strict=True):
            drawn = torch.from_numpy(random.normals(parameter.numel())).reshape(parameter.shape)
            noisy = total.double() + noise * self._max_norm * drawn.to(total.device)
            parameter.grad = (noisy / divisor).to(parameter)

    def _close(self, gradients: list[Tensor]) -> None:
        """Add these patients, each shrunk. One whose gradient is not finite adds nothing."""
        if len(gradients[0]) == 0:
            return
        squares_P = torch.stack([g.flatten(1).double().square().sum(dim=1) for g in gradients]).sum(dim=0)
        factor_P = (self._max_norm / (squares_P.sqrt() + _EPSILON)).clamp(max=1.0)
        finite_P = torch.isfinite(squares_P)
        for total, gradient_P in zip(self._sums, gradients, strict=True):
            total += torch.tensordot(factor_P[finite_P].to(total), gradient_P[finite_P].to(total), dims=1)

    def _by_patient(self, parameter: nn.Parameter, places_B: Tensor, num_patients: int) -> Tensor:
        of_patients_P = torch.zeros(
            (num_patients, *parameter.shape), dtype=_width(parameter), device=parameter.device
        )
        of_images_B = getattr(parameter, "grad_sample", None)
        if of_images_B is None:  # the loss does not depend on it
            return of_patients_P
        return of_patients_P.index_add_(
            0, places_B.to(parameter.device), of_images_B.detach().to(of_patients_P)
        )

    def _forget(self) -> None:
        for parameter in self._trained:
            parameter.grad = None
            parameter.grad_sample = None  # type: ignore[attr-defined]


def _width(parameter: nn.Parameter) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
