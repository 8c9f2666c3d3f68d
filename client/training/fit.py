"""The one training loop. An algorithm adds a penalty, a study chooses the loss; nothing adds a second loop.

An optimizer step is a pure function of weights, images and the seed: order, augmentation and
dropout of a step are drawn from seeds derived for that step alone. So a step that ran out of
memory is simply taken again in smaller pieces, and the pieces of a step (micro-batches) add up to
the gradient of the mean over its whole batch. Batch normalisation is the exception: it sees one
micro-batch at a time, so smaller ones change what it computes.

Differential privacy (`private`) replaces two things: who is in a step, and what its gradient is.
"""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.images import Images
from client.model.parameters import TensorNames, freeze, train_mode
from client.training.backward import Backward, Scale, seed_dropout
from client.training.batches import PassPlace, batch_size, class_weights, split, training_batches
from client.training.devices.group import FurtherDevices, Step
from client.training.hardware.out_of_memory import MostAtOnce, attempt, take_less
from client.training.hardware.precision import compute_dtype, weights_dtype
from client.training.hardware.prefetch import Prefetcher, Prepared, on_host
from client.training.losses import Loss, Slopes, by_class
from client.training.mixing import mixstyle
from client.training.optimizers import build_optimizer
from client.training.penalty import Penalty
from client.training.private.clipped_sum import gradients_of_images
from client.training.private.private_round import NoisyGradient, PrivateRound, images_at_once
from client.training.state.optimizer_state import arrays, load
from common.config import LocalConfig, learning_rate
from common.config.training import Sgd
from common.errors import ConsiliumError, SiteDataError
from common.seeds import derive
from common.weights import Arrays

MOST_IMAGES = 1024
"""Most images that are prepared, and so computed on, at once: 0.6 GB of them at 224 pixels a side."""

_LOOK_EVERY = 50
"""Steps on a GPU after which losses are looked at: to look at one means to wait for the device."""

_SAME_BATCH = "; the batch of a step stays the same (batch normalisation, if any, sees smaller groups)"


@dataclass(frozen=True)
class StudyPosition:
    """Position of a round in its study; the learning rate follows the whole study."""

    round: int
    """From 1."""
    rounds: int
    seed: int = 0
    """Of the site in this study, the same in every round: the order of passes that are longer than a round."""

    @property
    def pass_place(self) -> PassPlace:
        """Where the round begins in such a pass."""
        return PassPlace(self.round, self.seed)


@dataclass(frozen=True)
class TrainingResult:
    """Figures of one round of training. The weights are in the model."""

    num_examples: int
    """Training images of the site, by which its delta weighs, whatever part of them this round has shown."""
    num_steps: int
    rate_sum: float
    """Sum of the steps' learning rates."""
    mean_loss: float
    """Mean over all images seen, without penalty; class weights count as in the training loss."""
    seconds: float
    micro_batch_size: int
    """Images on the device at once, after any lack of memory."""
    slopes_N: Tensor
    """By training image: the slope of the loss in its logits, summed over the steps; see `Slopes`."""
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
    class_counts: Sequence[int] | None = None,
    most_at_once: MostAtOnce | None = None,
    further: FurtherDevices | None = None,
    private: PrivateRound | None = None,
) -> TrainingResult:
    """Train `model` in place for one round. `seed` is this site's and this round's; without a `loss` it is the
    cross-entropy over the classes. `optimizer_state` is that of the round before; without one the optimizer
    starts fresh. `class_counts` are training images of all sites, if the study weighs by them. `most_at_once`
    remembers from round to round how many images the device takes. `further` devices compute parts of each batch.
    `private`: patients are drawn by chance, and each step has noise; the figures but for the number of steps are then
    of the site alone, and nothing by chance follows from `seed`.

    Raises ConfigError if the device cannot compute as asked, SiteDataError if there are no images,
    TooLittleMemory if one is too large, DeviceLost if a further device has gone, ConsiliumError if loss or weights are
    not finite. After an error the weights are of no use.
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
    optimizer = build_optimizer(trained, local.optimizer, device)
    if optimizer_state:
        load(optimizer, named, optimizer_state)
    is_fp16 = compute_dtype(local.precision, device) == torch.float16
    if private is None:
        batches = training_batches(images.labels_N, local, seed, progress.pass_place)
    else:
        batches, seed = private.batches(local), private.seed()
    rescales = not isinstance(local.optimizer, Sgd) or local.clip_grad_norm is not None
    slopes = Slopes(num_images, device, by_step=rescales)
    most = most_at_once or MostAtOnce()
    passes = Backward(
        model=model,
        local=local,
        loss=loss or by_class(local.label_smoothing),
        weights_C=class_weights(images.labels_N, num_classes, local, class_counts).to(device, dtype),
        device=device,
        slopes=slopes,
        noisy=None if private is None else NoisyGradient(private, trained, batches),
    )
    if further is not None:
        further.begin(model, parts, local, passes.loss, passes.weights_C, seed)

    def prepare(step: int) -> Iterable[tuple[Prepared, Tensor]]:
        return _portions(images, batches[step], local, device, seed, step)

    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        mixstyle(model, local.mixstyle),
        Prefetcher(prepare, device) as portions,
        nullcontext() if private is None else gradients_of_images(model),
    ):
        stepper = _Stepper(
            passes=passes,
            further=further,
            portions=portions,
            penalty=penalty,
            optimizer=optimizer,
            scaler=torch.amp.GradScaler(device.type, enabled=is_fp16),
            seed=seed,
            num_steps=len(batches),
            micro_batch_size=min(
                most.training or MOST_IMAGES,
                local.micro_batch_size or MOST_IMAGES,
                batch_size(num_images, local) if private is None else images_at_once(trained),
            ),
            noisy=passes.noisy,
        )
        losses = _Losses(1 if device.type == "cpu" else _LOOK_EVERY)
        weights_C = passes.weights_C.cpu()
        weight_sum = 0.0
        rates = learning_rates(local, progress, len(batches))
        for step, (indices_B, lr) in enumerate(zip(batches, rates, strict=True)):
            weight = float(weights_C[images.labels_N[indices_B]].sum())
            losses.append(stepper.step(step, lr, weight, most), lr)
            if private is None:
                slopes.count(indices_B, lr / max(rates))
            weight_sum += weight
        losses.look()
    if not bool(torch.stack([torch.isfinite(parameter).all() for parameter in trained]).all()):
        raise _diverged("a weight", len(batches) - 1, lr)
    return TrainingResult(
        num_examples=num_images,
        num_steps=len(batches),
        rate_sum=math.fsum(rates),
        mean_loss=sum(losses.values) / (weight_sum or 1.0),
        seconds=time.perf_counter() - start_s,
        micro_batch_size=stepper.micro_batch_size,
        slopes_N=slopes.sums_N.cpu(),
        optimizer_state=arrays(optimizer, named) if local.keeps_optimizer_state else {},
    )


def learning_rates(local: LocalConfig, progress: StudyPosition, num_steps: int) -> list[float]:
    """Learning rate of each step of a round."""
    return learning_rate.learning_rates(local, progress.round, progress.rounds, num_steps)


class _Losses:
    """Summed losses of the steps, which stay on the device until they are looked at."""

    def __init__(self, look_every: int) -> None:
        self.values: list[float] = []
        self._waiting: list[tuple[Tensor, float]] = []
        self._look_every = look_every

    def append(self, loss: Tensor, lr: float) -> None:
        """Note the loss of the next step. Raises ConsiliumError if one is not finite."""
        self._waiting.append((loss, lr))
        if len(self._waiting) >= self._look_every:
            self.look()

    def look(self) -> None:
        """Wait for the device. Raises ConsiliumError that names the first step whose loss is not finite."""
        if not self._waiting:
            return
        values = torch.stack([loss for loss, _ in self._waiting]).tolist()
        for value, (_, lr) in zip(values, self._waiting, strict=True):
            if not math.isfinite(value):
                raise _diverged(f"a loss of {value}", len(self.values), lr)
            self.values.append(value)
        self._waiting.clear()


def _portions(
    images: Images, indices_B: Tensor, local: LocalConfig, device: torch.device, seed: int, step: int
) -> Iterable[tuple[Prepared, Tensor]]:
    """Images and labels of a step as the processor prepares them, `MOST_IMAGES` at a time.

    The portions do not depend on the micro-batch, so its size changes no augmentation.
    """
    draws = None
    if local.augmentation != "none":
        draws = torch.Generator().manual_seed(derive(seed, "augmentation", step))
    portions = (
        (on_host(images, held_B, draws, device), images.labels_N[held_B])
        for held_B in split(indices_B, MOST_IMAGES)
    )
    # A whole step that fits is prepared at once, which may be ahead; a larger one as its pieces are needed.
    return list(portions) if len(indices_B) <= MOST_IMAGES else portions


# --- one optimizer step --------------------------------------------------------------------------


@dataclass
class _Stepper:
    """Takes optimizer steps; remembers how many images fit on the device."""

    passes: Backward
    further: FurtherDevices | None
    portions: Prefetcher[int, Iterable[tuple[Prepared, Tensor]]]
    """The processor's part of each step's batch."""
    penalty: Penalty | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    seed: int
    num_steps: int
    micro_batch_size: int
    noisy: NoisyGradient | None
    """Of a round with differential privacy."""

    def step(self, step: int, lr: float, weight: float, most: MostAtOnce) -> Tensor:
        """One optimizer step on images of this weight in all. Returns the batch's summed loss, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        while True:
            loss_sum = attempt(lambda: self._gradients(step, weight))
            if loss_sum is None:
                self.optimizer.zero_grad()  # frees what the pieces before left
                self.micro_batch_size = take_less(self.micro_batch_size, "training", _SAME_BATCH)
                most.training = self.micro_batch_size
            elif self._try_step(step, lr):
                return loss_sum

    def _gradients(self, step: int, weight: float) -> Tensor:
        """Leave the batch's gradient in the parameters; returns its summed loss."""
        self.optimizer.zero_grad()
        self.passes.slopes.begin()
        if self.noisy is not None:
            self.noisy.begin(step)
        if self.further is not None:
            self.further.begin_step()
        seed_dropout(derive(self.seed, "dropout", step), self.passes.device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.passes.device)
        following = step + 1 if step + 1 < self.num_steps else None
        for prepared, labels_B in self.portions.get(step, following):
            scale = Scale(self.scaler.get_scale(), self.scaler.scale)
            span = (0, len(labels_B))
            if self.further is not None:
                shared = Step(step, self.micro_batch_size, weight, scale.value)
                span = self.further.hand_out(prepared, labels_B, shared)
            for loss in self.passes.losses(prepared, labels_B, span, self.micro_batch_size, weight, scale):
                loss_sum += loss
            if self.further is not None:
                loss_sum += self.further.collect(self.passes.slopes)
        if self.further is not None:
            self.further.add_gradients()
        if self.noisy is not None:
            self.noisy.end()
        if self.penalty is not None:
            torch.autograd.backward(self.scaler.scale(self.penalty(self.passes.model)))
        return loss_sum

    def _try_step(self, step: int, lr: float) -> bool:
        """Step along the gradient; False if fp16's loss scale was too large and has been lowered."""
        self.scaler.unscale_(self.optimizer)
        if self.passes.local.clip_grad_norm is not None:
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.passes.local.clip_grad_norm)
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
