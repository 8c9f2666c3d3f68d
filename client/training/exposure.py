"""Exposure of single patients by a round's training: how much of what leaves is due to one of them.

The change of the weights is a sum of steps, each of which is a mean over a batch. A batch of one image gives that
image away (APRIL, Lu et al. 2022, arXiv:2112.14087). So do larger batches if all steps but one are too small to be
seen, or if later steps undo earlier ones. All of that is counted here from the batches that will really be drawn, and
from the settings of the study (`influences`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.training.batches import batch_size, class_weights, split, training_batches
from client.training.fit import StudyPosition, learning_rates
from common.config import Algorithm, FedAvg, FedProx, LocalConfig
from common.config.training import AdamW, Sgd

NEGLIGIBLE = 1e-3
"""Steps whose influence is below this share of the largest one count as none, and so do patients in a step."""


@dataclass(frozen=True)
class Exposure:
    """Of one round at this site."""

    fewest_patients: int
    """In an optimizer step that is not negligible, without patients whose weight in it is. The last, shorter batch of
    an epoch does not count here if the influence of the steps is known."""
    largest_share: float
    """Of one patient in the sum of all steps, each weighted by its influence, or in any step if that is not known."""
    left_out: int = 0
    """Patients in no step, though each image is drawn at most once in a pass: another round that leaves out others
    differs by these patients and those."""
    largest_share_of_statistics: float = 0.0
    """Of one patient in the running statistics of batch normalisation; 0 without any that travel."""


def exposure(
    labels_N: Tensor,
    groups_N: Sequence[str],
    local: LocalConfig,
    seed: int,
    progress: StudyPosition,
    num_classes: int,
    algorithm: Algorithm | None = None,
    momentum: float | None = None,
    class_counts: Sequence[int] | None = None,
) -> Exposure:
    """Exposure by a round on these images. `groups_N` are patients or lesions, `momentum` the largest share of one
    forward pass in running statistics that travel, None without any. P patients.
    """
    batches = training_batches(labels_N, local, seed, progress.pass_place)
    influence = influences(local, algorithm or FedAvg(), learning_rates(local, progress, len(batches)))
    weights_N = class_weights(labels_N, num_classes, local, class_counts)[labels_N].double()
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups_N))}
    patients_N = torch.tensor([numbers[group] for group in groups_N])
    shares_P = torch.zeros(len(numbers), dtype=torch.float64)
    fewest, largest = len(numbers), 0.0
    full = batch_size(len(labels_N), local)
    known = influence or [1.0] * len(batches)
    most = max(known)
    for indices_B, counts_for in zip(batches, known, strict=True):
        patients_U, places_B = torch.unique(patients_N[indices_B], return_inverse=True)
        weights_B = weights_N[indices_B]
        share_U = torch.zeros(len(patients_U), dtype=torch.float64)
        share_U.index_add_(0, places_B, weights_B / weights_B.sum())
        shares_P[patients_U] += counts_for * share_U
        is_full = influence is None or len(indices_B) >= full
        if is_full and counts_for > NEGLIGIBLE * most:
            # With class weights of the server's choice a few images can be all that a step is of.
            fewest = min(fewest, int((share_U > NEGLIGIBLE * share_U.max()).sum()))
        if influence is None:
            largest = max(largest, float(share_U.max()))
    seen = len(torch.unique(patients_N[torch.cat(batches)]))
    of_statistics = 0.0
    if momentum is not None:
        of_statistics = _largest(_statistics(batches, patients_N, len(numbers), local, momentum))
    return Exposure(
        fewest,
        largest if influence is None else _largest(shares_P),
        len(numbers) - seen if local.sampling == "shuffled" else 0,
        of_statistics,
    )


def largest_share(weights_N: Tensor, groups_N: Sequence[str]) -> float:
    """Share of one patient in the sum over all images; 0 if there is nothing to share."""
    sums: dict[str, float] = {}
    for group, weight in zip(groups_N, weights_N.tolist(), strict=True):
        sums[group] = sums.get(group, 0.0) + weight
    total = sum(sums.values())
    return max(sums.values()) / total if total != 0 else 0.0


def _statistics(
    batches: Sequence[Tensor], patients_N: Tensor, num_patients: int, local: LocalConfig, momentum: float
) -> Tensor:
    """Weight of each patient in running statistics: each forward pass has `momentum`, and shrinks those before."""
    weights_P = torch.zeros(num_patients, dtype=torch.float64)
    for piece_B in _passes(batches, local):
        weights_P *= 1 - momentum
        part_B = torch.full((len(piece_B),), momentum / len(piece_B), dtype=torch.float64)
        weights_P.index_add_(0, patients_N[piece_B], part_B)
    return weights_P


def _passes(batches: Sequence[Tensor], local: LocalConfig) -> Iterator[Tensor]:
    for indices_B in batches:
        yield from split(indices_B, local.micro_batch_size or len(indices_B))


def _largest(weights_P: Tensor) -> float:
    """Share of the largest; 1 if there is nothing to share."""
    total = float(weights_P.sum())
    return float(weights_P.max()) / total if total > 0 else 1.0


# --- influence of a step -----------------------------------------------------------------------
# A step that is taken later counts more if each step pulls the weights back: to zero by weight decay, to the received
# weights by FedProx. With learning rate times pull = 1 a step undoes all before it, and the round's change is the last
# batch alone, whatever the others held. With SGD and AdamW the weights depend on each gradient through a linear
# recursion, which is followed here backwards, from the last step to the first. With other optimizers the recursion
# depends on the gradients themselves.

HARMLESS_PULL = 1e-4
"""Largest learning rate times the weight of FedProx that is passed over where the influence is not known."""
HARMLESS_FORCE = 0.1
"""The same of a penalty that is not squared: it pulls with a force of its own, however far the weights have gone."""


def influences(local: LocalConfig, algorithm: Algorithm, rates: Sequence[float]) -> list[float] | None:
    """Influence of each step on the final weights, relative to the largest learning rate. None if it cannot be known,
    because a strong pull meets gradients that are rescaled: every step may then be all that is left.
    """
    fastest = max(rates)
    if not math.isfinite(fastest) or fastest <= 0:
        return None
    mu = algorithm.mu if isinstance(algorithm, FedProx) else 0.0
    squared = not isinstance(algorithm, FedProx) or algorithm.squared
    optimizer = local.optimizer
    clip = local.clip_grad_norm
    if not squared and mu > HARMLESS_FORCE * min(1.0, clip or 1.0):
        return None
    pulled = mu if squared else 0.0
    if isinstance(optimizer, Sgd):
        pull = pulled + optimizer.weight_decay
        if clip is not None and not fastest * pull <= HARMLESS_PULL:
            return None
        return _known(rates, fastest, coupled=pull, decoupled=0.0, momentum=optimizer.momentum)
    if not fastest * pulled <= HARMLESS_PULL:
        return None
    decay = optimizer.weight_decay if isinstance(optimizer, AdamW) else 0.0
    return _known(rates, fastest, coupled=0.0, decoupled=decay, momentum=0.0)


def _known(
    rates: Sequence[float], fastest: float, *, coupled: float, decoupled: float, momentum: float
) -> list[float] | None:
    """b = momentum b + gradient + coupled w, then w = (1 - rate decoupled) w - rate b, followed backwards.

    `of_w` and `of_b` say how much the final weights depend on w and b after the step in hand.
    """
    of_w, of_b = 1.0, 0.0
    influence = []
    for rate in reversed(rates):
        of_b -= rate / fastest * of_w
        influence.append(abs(of_b))
        of_w = of_w * (1 - rate * decoupled) + coupled * fastest * of_b
        of_b *= momentum
        if not (math.isfinite(of_w) and math.isfinite(of_b)):
            return None
    return influence[::-1]
