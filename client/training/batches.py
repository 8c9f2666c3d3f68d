"""Batches of one local training: order, size, class weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import LocalConfig
from common.seeds import derive


@dataclass(frozen=True)
class PassPlace:
    """Where a round begins in passes that go on from round to round."""

    round: int
    """From 1."""
    seed: int
    """Of the site in this study, the same in every round."""


def training_batches(
    labels_N: Tensor, local: LocalConfig, seed: int, place: PassPlace | None = None
) -> list[Tensor]:
    """Indices of every step of this round; each pass over the images has its own order.

    Where a round is not whole passes, a pass goes on in the next round: `place` says where this one begins.
    """
    size = batch_size(len(labels_N), local)

    def one_pass(order_seed: int) -> list[Tensor]:
        return split(_pass(labels_N, local, torch.Generator().manual_seed(order_seed)), size)

    epochs = local.num_epochs
    if epochs is not None and epochs != int(epochs):
        return _part(one_pass, epochs, place or PassPlace(round=1, seed=seed))
    batches: list[Tensor] = []
    epoch = 0
    while epoch < epochs if epochs else len(batches) < (local.steps or 0):
        batches += one_pass(derive(seed, "order", epoch))
        epoch += 1
    return batches[: local.steps]


def _part(one_pass: Callable[[int], list[Tensor]], epochs: float, place: PassPlace) -> list[Tensor]:
    """The steps of round `place.round` on a way through pass after pass; one step at least."""
    batches = one_pass(derive(place.seed, "pass", 0))
    num_steps = len(batches)  # of a pass, the same in every one
    # A third of 3 passes is one, although 3 * 0.33333333 is less.
    start, end = (
        math.floor(number * epochs * num_steps + _ROUNDING) for number in (place.round - 1, place.round)
    )
    chosen: list[Tensor] = []
    for step in range(start, max(end, start + 1)):
        number, within = divmod(step, num_steps)
        if within == 0 or step == start:
            batches = one_pass(derive(place.seed, "pass", number))
        chosen.append(batches[within])
    return chosen


_ROUNDING = 1e-6


def _pass(labels_N: Tensor, local: LocalConfig, order: torch.Generator) -> Tensor:
    """Indices of one epoch; weighted, each class that is there has the same chance in every draw."""
    if local.sampling == "shuffled":
        return torch.randperm(len(labels_N), generator=order)
    chances_N = 1 / torch.bincount(labels_N).to(torch.float64)[labels_N]
    return torch.multinomial(chances_N, len(labels_N), replacement=True, generator=order)


def batch_size(num_images: int, local: LocalConfig) -> int:
    """Images per optimizer step: all of them, or at most what the site holds."""
    return num_images if local.batch_size == "all" else min(local.batch_size, num_images)


def split(items: Tensor, size: int) -> list[Tensor]:
    """Pieces of `size`, the last one smaller; one left over joins the piece before it.

    Batch normalisation cannot train on one image, and a step on one is mostly noise.
    """
    pieces = [items[start : start + size] for start in range(0, len(items), size)]
    if size > 1 and len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


def spans(num_items: int, size: int) -> list[tuple[int, int]]:
    """Start and end of each piece that `split` makes of so many items."""
    return [(int(piece[0]), int(piece[-1]) + 1) for piece in split(torch.arange(num_items), size)]


def class_weights(
    labels_N: Tensor, num_classes: int, local: LocalConfig, study_counts: Sequence[int] | None = None
) -> Tensor:
    """Weight per class. `site`: n / (classes present * images of the class).

    Every class that is present weighs the same in sum, and an image weighs 1 in the mean. `study` counts the images of
    all sites, `study_counts`. A class without images here gets 0; no label asks for it.
    """
    if local.class_weights == "none":
        return torch.ones(num_classes)
    here_C = torch.bincount(labels_N.cpu(), minlength=num_classes).double()
    counts_C = here_C
    if local.class_weights == "study":
        assert study_counts is not None, "the server sends the counts that a study weighs by"
        counts_C = torch.tensor(study_counts, dtype=torch.float64)
    present_C = here_C > 0
    weights_C = counts_C.sum() / ((counts_C > 0).sum() * counts_C.clamp(min=1))
    if local.class_weights == "capped":
        weights_C = weights_C.clamp(max=float(weights_C[present_C].min()) * local.class_weight_cap)
    return torch.where(present_C, weights_C, 0)
