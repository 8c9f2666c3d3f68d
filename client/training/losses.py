"""Loss functions for local training: from logits and labels to one number.

The training loop takes any of these. Two of them compare the images of a batch with each other. They
need nothing but the logits, for the cosine of image i with the text of image j is the one with the class
of j. They see one micro-batch at a time, as batch normalisation does, so smaller ones give fewer
images to compare with. A loss is a function of this file with its numbers bound, so that it can be sent to the process
of another device.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias, assert_never

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softplus

from common.config import ClassifierConfig, LocalConfig, ModelConfig

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(logits_BC, labels_B, weights_C)`: the sum over the images, each times its class's weight."""


def of_study(
    model: ModelConfig,
    local: LocalConfig,
    class_counts: Sequence[int],
    study_counts: Sequence[int] | None = None,
) -> Loss:
    """The loss that the study chose; `class_counts` are the site's training images by class, `study_counts` those of
    all sites, if the study weighs by them.
    """
    if isinstance(model, ClassifierConfig):
        return _over_classes(local, class_counts, study_counts)
    match model.loss:
        case "class":
            return _over_classes(local, class_counts, study_counts)
        case "contrastive":
            return contrastive
        case "supervised_contrastive":
            return supervised_contrastive
        case _:
            assert_never(model.loss)


def _over_classes(
    local: LocalConfig, class_counts: Sequence[int], study_counts: Sequence[int] | None
) -> Loss:
    loss = _plain(local, class_counts, study_counts)
    return among(class_counts, loss) if local.absent_classes == "mask" else loss


def _plain(local: LocalConfig, class_counts: Sequence[int], study_counts: Sequence[int] | None) -> Loss:
    match local.chosen_loss:
        case "cross_entropy":
            return by_class(local.label_smoothing)
        case "balanced_softmax":
            # A mask comes first, so the prior is that of the classes that it leaves.
            seen = [place for place, count in enumerate(class_counts) if count]
            counts = class_counts if local.prior == "site" or study_counts is None else study_counts
            if local.absent_classes == "mask":
                counts = [counts[place] for place in seen]
            return balanced_softmax(counts, local.label_smoothing)
        case "focal":
            return focal()
        case _:
            assert_never(local.chosen_loss)


def balanced_softmax(class_counts: Sequence[int], label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy with each class's logit raised by the logarithm of its images, `class_counts`.

    The network then learns what tells classes apart, not how frequent they are (Ren et al. 2020,
    arXiv:2007.10740, eq. 4; logit adjustment, Menon et al. 2021, arXiv:2007.07314). A class without images is
    left out of the softmax, so a site does not teach the network that it never occurs.
    """
    prior_C = torch.tensor(class_counts, dtype=torch.float64).clamp(min=1).log()
    shares_C = prior_C[torch.tensor(class_counts) > 0]
    return among(class_counts, partial(_raised, shares_C, by_class(label_smoothing)))


def _raised(shares_C: Tensor, loss: Loss, logits_BC: Tensor, labels_B: Tensor, weights_C: Tensor) -> Tensor:
    return loss(logits_BC + shares_C.to(logits_BC), labels_B, weights_C)


def among(class_counts: Sequence[int], loss: Loss) -> Loss:
    """`loss` over the classes that have images alone: the others are no possible answer, and their logits stay."""
    is_present_C = torch.tensor(class_counts) > 0
    if bool(is_present_C.all()):
        return loss
    return partial(_masked, is_present_C.nonzero().squeeze(1), is_present_C.cumsum(0) - 1, loss)


def _masked(
    present_P: Tensor, places_C: Tensor, loss: Loss, logits_BC: Tensor, labels_B: Tensor, weights_C: Tensor
) -> Tensor:
    present = present_P.to(logits_BC.device)
    places_B = places_C.to(labels_B.device)[labels_B]
    return loss(logits_BC[:, present], places_B, weights_C[present])


def focal(gamma: float = 2.0) -> Loss:
    """Cross-entropy times (1 - p)^gamma, p the probability of the right class (Lin et al. 2017, arXiv:1708.02002)."""
    return partial(_focal, gamma)


def _focal(gamma: float, logits_BC: Tensor, labels_B: Tensor, weights_C: Tensor) -> Tensor:
    right_B = log_softmax(logits_BC, dim=1).gather(1, labels_B[:, None]).squeeze(1)
    return -(weights_C[labels_B] * (1 - right_B.exp()) ** gamma * right_B).sum()


def by_class(label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy over the classes."""
    return partial(_by_class, label_smoothing)


def _by_class(label_smoothing: float, logits_BC: Tensor, labels_B: Tensor, weights_C: Tensor) -> Tensor:
    return cross_entropy(
        logits_BC, labels_B, weight=weights_C, label_smoothing=label_smoothing, reduction="sum"
    )


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


class Slopes:
    """Slope of the loss in each image's logits (L1), summed over the steps of a round.

    An image that is classified without doubt has none, and adds nothing to the weights. `by_step`: each step is
    divided by its own sum, as an optimizer does that rescales gradients. Nothing of the training changes. N images.
    """

    def __init__(self, num_images: int, device: torch.device, *, by_step: bool) -> None:
        self.sums_N = torch.zeros(num_images, dtype=torch.float64, device=device)
        self._by_step = by_step
        self._pieces: list[Tensor] = []

    def begin(self) -> None:
        """A step begins, perhaps once more."""
        self._pieces.clear()

    def watch(self, logits_BC: Tensor, scale: float) -> None:
        """Note the slopes of these logits once the loss, `scale` times as large, is followed back.

        Micro-batches come in order.
        """

        def note(slopes_BC: Tensor) -> None:
            self._pieces.append(slopes_BC.detach().abs().sum(dim=1).double() / scale)

        logits_BC.register_hook(note)  # type: ignore[no-untyped-call]

    def take(self) -> Tensor:
        """The slopes that were noted since the last call or the step's begin, which are forgotten."""
        slopes_B = torch.cat(self._pieces)
        self._pieces.clear()
        return slopes_B

    def add(self, slopes_B: Tensor) -> None:
        """Note the slopes of images that another device has computed on; they follow those noted before."""
        self._pieces.append(slopes_B.to(self.sums_N.device))

    def count(self, indices_B: Tensor, weight: float) -> None:
        """Add the step that was taken on these images, `weight` times."""
        slopes_B = torch.cat(self._pieces)
        if self._by_step:
            slopes_B = slopes_B / slopes_B.sum().clamp(min=1e-300)
        self.sums_N.index_add_(0, indices_B.to(self.sums_N.device), weight * slopes_B)
