"""Loss functions for local training: from logits and labels to one number.

The training loop takes any of these. Two of them compare the images of a batch with each other. They
need nothing but the logits, for the cosine of image i with the text of image j is the one with the class
of j. They see one micro-batch at a time, as batch normalisation does, so smaller ones give fewer
images to compare with.
"""

from collections.abc import Callable
from typing import TypeAlias, assert_never

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softplus

from common.config import ClassifierConfig, LocalConfig, ModelConfig

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(logits_BC, labels_B, weights_C)`: the sum over the images, each times its class's weight."""


def of_study(model: ModelConfig, local: LocalConfig) -> Loss:
    """The loss that the study chose."""
    if isinstance(model, ClassifierConfig):
        return by_class(local.label_smoothing)
    match model.loss:
        case "class":
            return by_class(local.label_smoothing)
        case "contrastive":
            return contrastive
        case "supervised_contrastive":
            return supervised_contrastive
        case _:
            assert_never(model.loss)


def by_class(label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy over the classes."""

    def loss(logits_BC: Tensor, labels_B: Tensor, weights_C: Tensor) -> Tensor:
        return cross_entropy(
            logits_BC, labels_B, weight=weights_C, label_smoothing=label_smoothing, reduction="sum"
        )

    return loss


def contrastive(logits_BC: Tensor, labels_B: Tensor, weights_C: Tensor) -> Tensor:
    """Symmetric InfoNCE over the batch (Radford et al. 2021, arXiv:2103.00020, figure 3).

    Each image has one right text, its own; the equal text of another image of its class counts as wrong.
    To share the right answer among those texts (UniCL, arXiv:2204.03610) would change nothing here:
    they are equal, so the sum over the batch is the same number.
    """
    pairs_BB = logits_BC[:, labels_B]
    image_B, text_B = (-log_softmax(side_BB, dim=1).diagonal() for side_BB in (pairs_BB, pairs_BB.T))
    return (weights_C[labels_B] * (image_B + text_B) / 2).sum()


def supervised_contrastive(logits_BC: Tensor, labels_B: Tensor, weights_C: Tensor) -> Tensor:
    """Every pair of one class is right, and none of them is among the wrong ones of another (SINCERE, Feeney and
    Hughes 2023, arXiv:2309.14277, eq. 7), for images among texts and texts among images.
    """
    pairs_BB = logits_BC[:, labels_B]
    same_BB = labels_B[:, None] == labels_B[None, :]
    image_B, text_B = (_among_wrong(side_BB, same_BB) for side_BB in (pairs_BB, pairs_BB.T))
    return (weights_C[labels_B] * (image_B + text_B) / 2).sum()


def _among_wrong(logits_BB: Tensor, same_BB: Tensor) -> Tensor:
    """Per row, the mean over right columns p of -log(e^p / (e^p + sum of e^n over wrong columns n))."""
    nothing = torch.finfo(logits_BB.dtype).min / 2  # not -inf, whose gradient is NaN in a batch of one class
    wrong_B1 = logits_BB.masked_fill(same_BB, nothing).logsumexp(dim=1, keepdim=True)
    return (same_BB * softplus(wrong_B1 - logits_BB)).sum(dim=1) / same_BB.sum(dim=1)
