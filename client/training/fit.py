"""The one training loop. An algorithm adds a penalty, a study chooses the loss; nothing adds a second loop.

An optimizer step is a pure function of weights, images and the seed: order, augmentation and
dropout of a step are drawn from seeds derived for that step alone. So a step that ran out of
memory is simply taken again in smaller pieces, and the pieces of a step (micro-batches) add up to
the gradient of the mean over its whole batch. Batch normalisation is the exception: it sees one
micro-batch at a time, so smaller ones change what it computes.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.images import Images
from client.model.parameters import TensorNames, freeze, train_mode
from client.training.batches import batch_size, class_weights, split, training_batches
from client.training.losses import Loss, by_class
from client.training.optimizer_state import arrays, load
from client.training.optimizers import build_optimizer, lr_factor
from client.training.out_of_memory import attempt, take_less
from client.training.penalty import Penalty
from client.training.precision import autocast, compute_dtype, weights_dtype
from common.config import LocalConfig
from common.errors import ConsiliumError, SiteDataError
from common.seeds import derive
from common.weights import Arrays

MOST_IMAGES = 1024
"""Most images that are prepared, and so computed on, at once: 0.6 GB of them at 224 pixels a side."""

_SAME_BATCH = "; the batch of a step stays the same (batch normalisation, if any, sees smaller groups)"


@dataclass(frozen=True)
class StudyPosition:
    """Position of a round in its study; the learning rate follows the whole study."""

    round: int
    """From 1."""
    rounds: int

    def share(self, step: int, num_steps: int) -> float:
        """Share of the study's training that lies before the middle of `step`, counted from 0.

        The middle, because at its ends a warm-up or a cosine is 0, and a round of one step
        would train nothing.
        """
        return (self.round - 1 + (step + 0.5) / num_steps) / self.rounds


@dataclass(frozen=True)
class TrainingResult:
    """Figures of one round of training. The weights are in the model."""

    num_examples: int
    """Distinct images trained on."""
    num_steps: int
    mean_loss: float
    """Mean over all images seen, without penalty; class weights count as in the training loss."""
    seconds: float
    micro_batch_size: int
    """Images on the device at once, after any lack of memory."""
    optimizer_state: Arrays
    """What the optimizer knows after the last step, by tensor; see `optimizer_state.py`."""


def fit(
    model: nn.Module,
    images: Images,
    local: LocalConfig,
    *,
    parts: TensorNames,
    progress: StudyPosition,
    penalty: Penalty | None,
    device: torch.device,
    seed: int,
    num_classes: int,
    loss: Loss | None = None,
    optimizer_state: Arrays | None = None,
) -> TrainingResult:
    """Train `model` in place for one round. `seed` is this site's and this round's; without a `loss` it is the
    cross-entropy over the classes. `optimizer_state` is that of the round before; without one the optimizer
    starts fresh.

    Raises ConfigError if the device cannot compute as asked, SiteDataError if there are no images,
    TooLittleMemory if one is too large, ConsiliumError if loss or weights are not finite. After an
    error the weights are of no use.
    """
    start_s = time.perf_counter()
    num_images = len(images.labels_N)
    if num_images == 0:
        raise SiteDataError("found no training images, expected at least one; check the site's split.")
    freeze(model, parts)
    train_mode(model, parts)
    dtype = weights_dtype(local.precision)
    model.to(device, dtype)
    if local.channels_last:
        model.to(memory_format=torch.channels_last)
    if local.compile and model._compiled_call_impl is None:  # kept on the model from round to round
        model.compile()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = list(named.values())
    optimizer = build_optimizer(trained, local.optimizer)
    if optimizer_state:
        load(optimizer, named, optimizer_state)
    is_fp16 = compute_dtype(local.precision, device) == torch.float16
    stepper = _Stepper(
        model=model,
        images=images,
        local=local,
        loss=loss or by_class(local.label_smoothing),
        penalty=penalty,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=is_fp16),
        device=device,
        seed=seed,
        labels_N=images.labels_N.to(device),
        weights_C=class_weights(images.labels_N, num_classes, local).to(device, dtype),
        micro_batch_size=min(
            local.micro_batch_size or MOST_IMAGES, batch_size(num_images, local), MOST_IMAGES
        ),
    )
    batches = training_batches(images.labels_N, local, seed)
    loss_sum = weight_sum = 0.0
    num_seen = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        rates = learning_rates(local, progress, len(batches))
        for step, (indices_B, lr) in enumerate(zip(batches, rates, strict=True)):
            step_loss, step_weight = stepper.step(step, indices_B, lr)
            loss_sum += step_loss
            weight_sum += step_weight
            num_seen += len(indices_B)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in trained):
        raise _diverged("a weight", len(batches) - 1, lr)
    return TrainingResult(
        num_examples=min(num_images, num_seen),  # the first pass shows every image once
        num_steps=len(batches),
        mean_loss=loss_sum / weight_sum,
        seconds=time.perf_counter() - start_s,
        micro_batch_size=stepper.micro_batch_size,
        optimizer_state=arrays(optimizer, named) if local.keeps_optimizer_state else {},
    )


def learning_rates(local: LocalConfig, progress: StudyPosition, num_steps: int) -> list[float]:
    """Learning rate of each step of a round."""
    return [
        local.optimizer.lr * lr_factor(local.schedule, progress.share(step, num_steps))
        for step in range(num_steps)
    ]


# --- one optimizer step --------------------------------------------------------------------------


@dataclass
class _Stepper:
    """Takes optimizer steps; remembers how many images fit on the device."""

    model: nn.Module
    images: Images
    local: LocalConfig
    loss: Loss
    penalty: Penalty | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    seed: int
    labels_N: Tensor
    weights_C: Tensor
    micro_batch_size: int

    def step(self, step: int, indices_B: Tensor, lr: float) -> tuple[float, float]:
        """One optimizer step. Returns the batch's summed loss and the weight of its images."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        weight = float(self.weights_C[self.labels_N[indices_B.to(self.device)]].sum())
        while True:
            loss_sum = attempt(lambda: self._gradients(step, indices_B, weight))
            if loss_sum is None:
                self.optimizer.zero_grad()  # frees what the pieces before left
                self.micro_batch_size = take_less(self.micro_batch_size, "training", _SAME_BATCH)
            elif not math.isfinite(loss_sum):
                raise _diverged(f"a loss of {loss_sum}", step, lr)
            elif self._try_step(step, lr):
                return loss_sum, weight

    def _gradients(self, step: int, indices_B: Tensor, weight: float) -> float:
        """Leave the batch's gradient in the parameters; returns its summed loss."""
        self.optimizer.zero_grad()
        torch.manual_seed(derive(self.seed, "dropout", step))
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch_BCHW, labels_B in self._pieces(step, indices_B):
            with autocast(self.local.precision, self.device):
                logits_BC = self.model(batch_BCHW)
            # bf16 has 8 bits, too few for a sum of exponentials
            logits_BC = logits_BC.to(self.weights_C.dtype)
            loss = self.loss(logits_BC, labels_B, self.weights_C)
            # Divided by the weight of the whole batch, so that the pieces add up to its mean.
            torch.autograd.backward(self.scaler.scale(loss / weight))
            loss_sum += loss.detach()
        if self.penalty is not None:
            torch.autograd.backward(self.scaler.scale(self.penalty(self.model)))
        return loss_sum.item()

    def _pieces(self, step: int, indices_B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, on the device, in micro-batches.

        Images are prepared in portions that do not depend on the micro-batch, so its size
        changes no augmentation.
        """
        draws = None
        if self.local.augmentation != "none":
            draws = torch.Generator().manual_seed(derive(self.seed, "augmentation", step))
        for held_B in split(indices_B, MOST_IMAGES):
            batch_BCHW = self.images.batch(held_B, draws)
            for piece_B in split(torch.arange(len(held_B)), self.micro_batch_size):
                part_BCHW = batch_BCHW[piece_B[0] : piece_B[-1] + 1].to(self.device, self.weights_C.dtype)
                if self.local.channels_last:
                    part_BCHW = part_BCHW.contiguous(memory_format=torch.channels_last)
                yield part_BCHW, self.labels_N[held_B[piece_B].to(self.device)]

    def _try_step(self, step: int, lr: float) -> bool:
        """Step along the gradient; False if fp16's loss scale was too large and has been lowered."""
        self.scaler.unscale_(self.optimizer)
        if self.local.clip_grad_norm is not None:
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.local.clip_grad_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:
            return True
        if scale <= 1:
            raise _diverged("a gradient", step, lr)
        return False


def _diverged(what: str, step: int, lr: float) -> ConsiliumError:
    return ConsiliumError(
        f"training stopped at step {step + 1} of this round with learning rate {lr:g}: found {what} that "
        "is not a finite number. Lower local.optimizer.lr, or set local.clip_grad_norm or a warm-up."
    )
