"""Exposure of single patients by a round's training: how much of what leaves is due to one of them.

The change of the weights is a sum of steps, each of which is a mean over a batch. A batch of one image gives that
image away (APRIL, Lu et al. 2022, arXiv:2112.14087). So do larger batches if all steps but one are too small to be
seen. Both are counted here from the batches that will really be drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.training.batches import batch_size, class_weights, training_batches
from client.training.fit import StudyPosition, learning_rates
from common.config import LocalConfig

NEGLIGIBLE = 1e-3
"""Learning rates below this share of the largest one count as none."""


@dataclass(frozen=True)
class Exposure:
    """Of one round at this site."""

    fewest_patients: int
    """In an optimizer step that is not negligible. The last, shorter batch of an epoch does not count here."""
    largest_share: float
    """Of one patient in the sum of all steps, each weighted by its learning rate."""


def exposure(
    labels_N: Tensor,
    groups_N: Sequence[str],
    local: LocalConfig,
    seed: int,
    progress: StudyPosition,
    num_classes: int,
) -> Exposure:
    """Exposure by a round on these images. `groups_N` are patients or lesions."""
    batches = training_batches(labels_N, local, seed)
    rates = learning_rates(local, progress, len(batches))
    weights_N = class_weights(labels_N, num_classes, local)[labels_N].double()
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups_N))}
    patients_N = torch.tensor([numbers[group] for group in groups_N])
    shares_P = torch.zeros(len(numbers), dtype=torch.float64)
    fewest, full = len(numbers), batch_size(len(labels_N), local)
    largest = max(rates)
    for indices_B, rate in zip(batches, rates, strict=True):
        weights_B = weights_N[indices_B]
        shares_P.index_add_(0, patients_N[indices_B], weights_B * (rate / float(weights_B.sum())))
        if rate > NEGLIGIBLE * largest and len(indices_B) >= full:
            fewest = min(fewest, len(torch.unique(patients_N[indices_B])))
    total = float(shares_P.sum())
    return Exposure(fewest, float(shares_P.max()) / total if total > 0 else 1.0)
