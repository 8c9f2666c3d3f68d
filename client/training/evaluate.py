"""Evaluation of a model on images, as counts; the server computes the ratios.

Probabilities are a float64 softmax of the logits, so that the counts of two machines differ only
where their logits do.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.images import Images
from client.training.hardware.out_of_memory import MostAtOnce
from client.training.hardware.precision import Precision
from client.training.inference import finite, infer
from common.errors import ConsiliumError
from common.metrics import Score, count, empty

Counting: TypeAlias = Callable[[npt.NDArray[np.float64], npt.NDArray[np.int64]], Score]
"""The score of all images at once, given their probabilities (N, C) and labels (N)."""


def evaluate(
    model: nn.Module,
    images: Images,
    *,
    num_classes: int,
    device: torch.device,
    precision: Precision,
    batch_size: int | None = None,
    most_at_once: MostAtOnce | None = None,
    num_bins: int | None = None,
    counting: Counting | None = None,
    private: bool = False,
    on_predicted: Callable[[npt.NDArray[np.float64]], None] = lambda _: None,
) -> Score:
    """Score `model` on `images`, centre-cropped; its training mode is left as it was.

    `counting` makes the score where a cell of few patients is kept back, which takes all images at once. Otherwise
    every batch is counted and forgotten. `on_predicted` is called with the probabilities of each batch, in order.

    `private`: an image whose outputs are not finite counts as one of which nothing is known, since an error would say
    without noise that there is one.

    Raises ConsiliumError if an output is not finite, TooLittleMemory if not one image fits.
    """

    def logits(batch_BCHW: Tensor) -> Tensor:
        logits_BC: Tensor = model(batch_BCHW)
        exact_BC = logits_BC.detach().double().cpu()
        return finite(exact_BC) if private else exact_BC

    batches = infer(
        model,
        images,
        logits,
        device=device,
        precision=precision,
        batch_size=batch_size,
        activity="scoring",
        most_at_once=most_at_once,
    )
    if counting is not None:
        whole_NC = [_probabilities(logits_BC).numpy() for logits_BC in batches]
        none_NC = np.zeros((0, num_classes))
        probabilities_NC = np.concatenate([none_NC, *whole_NC])
        on_predicted(probabilities_NC)
        return counting(probabilities_NC, images.labels_N.cpu().numpy())
    score, start = empty(num_classes), 0
    for logits_BC in batches:
        probabilities_BC = _probabilities(logits_BC)
        on_predicted(probabilities_BC.numpy())
        labels_B = images.labels_N[start : start + len(logits_BC)].cpu()
        loss_sum = cross_entropy(logits_BC, labels_B, reduction="sum").item()
        score += count(probabilities_BC.numpy(), labels_B.numpy(), loss_sum, num_bins)
        start += len(logits_BC)
    return score


def _probabilities(logits_BC: Tensor) -> Tensor:
    if not bool(torch.isfinite(logits_BC).all()):
        raise ConsiliumError(
            "the received weights give outputs that are not finite numbers on this site's images; "
            "expected finite ones. The study has diverged: lower local.optimizer.lr and start again."
        )
    return logits_BC.softmax(dim=1)
