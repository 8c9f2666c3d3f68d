"""Forward and backward passes over a part of a step's batch, in micro-batches, on one device.

The trainer's own device and a site's further devices run the same lines. Gradients add up in the parameters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.training.batches import spans
from client.training.hardware.precision import autocast
from client.training.hardware.prefetch import Prepared
from client.training.losses import Loss, Slopes
from client.training.mixing import amplitude_mix
from client.training.private.private_round import NoisyGradient
from common.config import LocalConfig


@dataclass(frozen=True)
class Scale:
    """The factor of fp16's losses; 1 in every other precision."""

    value: float
    times: Callable[[Tensor], Tensor]
    """The tensor it is given, times `value`."""


@dataclass(frozen=True)
class Backward:
    """What the passes need that stays the same for a round."""

    model: nn.Module
    local: LocalConfig
    loss: Loss
    weights_C: Tensor
    device: torch.device
    slopes: Slopes
    noisy: NoisyGradient | None = None
    """Of a round with differential privacy: it takes the gradient of every image."""

    def losses(
        self,
        prepared: Prepared,
        labels_B: Tensor,
        span: tuple[int, int],
        micro_batch_size: int,
        weight: float,
        scale: Scale,
    ) -> Iterator[Tensor]:
        """The summed loss of each micro-batch of the images from `start` to `stop`, once its gradient is added.

        `weight` is that of the whole batch of the step, so that all parts of it add up to its mean.
        """
        first, last = span
        for begin, end in spans(last - first, micro_batch_size):
            start, stop = first + begin, first + end
            piece_BCHW = prepared.on_device((start, stop), self.device, self.weights_C.dtype)
            if self.local.amplitude_mix > 0:
                piece_BCHW = amplitude_mix(piece_BCHW, self.local.amplitude_mix)
            if self.local.channels_last:
                piece_BCHW = piece_BCHW.contiguous(memory_format=torch.channels_last)
            piece_labels_B = labels_B[start:stop].to(self.device, non_blocking=True)
            with autocast(self.local.precision, self.device):
                logits_BC = self.model(piece_BCHW)
            # bf16 has 8 bits, too few for a sum of exponentials
            logits_BC = logits_BC.to(self.weights_C.dtype)
            if self.noisy is None:
                self.slopes.watch(logits_BC, scale.value)
            loss = self.loss(logits_BC, piece_labels_B, self.weights_C)
            if self.noisy is not None:
                torch.autograd.backward(loss)
                self.noisy.add(len(labels_B[start:stop]))
                yield loss.detach().nan_to_num()  # a failure would tell of the patient whose loss it is
                continue
            torch.autograd.backward(scale.times(loss / weight))
            yield loss.detach()


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what dropout draws from on this device."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            # The processor's generator is the augmentation's, in another thread.
            torch.cuda.manual_seed(seed)
    else:
        # torch.manual_seed gives the same draws, but writes down the call stack for GPUs that are not in use.
        torch.default_generator.manual_seed(seed)
