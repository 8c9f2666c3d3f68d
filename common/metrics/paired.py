"""Comparison of two classifiers on the same images: counts that add up, a difference and its interval.

A head is compared with the network's own softmax on one test set, so their errors are not independent and
two intervals side by side say little. What travels is, per class, how many images both, one or none got
right, and the sums from which the variance of a difference follows when whole groups (patients, lesions)
are drawn rather than images: the linearised, cluster-robust variance of a ratio (Cochran 1977, Sampling
Techniques, 6.13). Both add up over sites, so a pooled difference has an interval, too.

C classes, G groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, model_validator

from common.metrics import Counts
from common.settings import Frozen

Sum = Annotated[int, Field(ge=-(2**50), le=2**50)]


class Paired(Frozen):
    """Counts of a head beside the softmax, on some images."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    right_C4: Counts
    """Images by class that both, only the softmax, only the head, or neither got right."""
    num_groups: Annotated[int, Field(ge=0)]
    products: tuple[tuple[Sum, ...], ...]
    """(2C, 2C): sums over groups of v vᵀ, where v is, by class, right answers of the head minus those of
    the softmax, and then images."""

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        shape = self.right_C4.shape
        size = 2 * shape[0] if len(shape) == 2 else 0
        if shape[1:] != (4,) or len(self.products) != size or any(len(row) != size for row in self.products):
            raise ValueError("right_C4 and products must be of the same classes")
        return self

    def __add__(self, other: "Paired") -> "Paired":
        """Counts of both sets of images; no group may be in both."""
        products = np.asarray(self.products, object) + np.asarray(other.products, object)
        return Paired(
            right_C4=self.right_C4 + other.right_C4,
            num_groups=self.num_groups + other.num_groups,
            products=tuple(map(tuple, products.tolist())),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paired) and self.model_dump(mode="json") == other.model_dump(mode="json")

    __hash__ = None  # type: ignore[assignment]  # arrays inside


def pair(
    softmax_right_N: npt.NDArray[np.bool_],
    head_right_N: npt.NDArray[np.bool_],
    labels_N: npt.NDArray[np.int64],
    groups_N: Sequence[str],
    num_classes: int,
) -> Paired:
    """Compare two classifiers, given which images each got right."""
    column_N = np.where(softmax_right_N, np.where(head_right_N, 0, 1), np.where(head_right_N, 2, 3))
    right_C4 = np.zeros((num_classes, 4), np.int64)
    np.add.at(right_C4, (labels_N, column_N), 1)
    values_GV = group_sums(softmax_right_N, head_right_N, labels_N, groups_N, num_classes)
    products = (values_GV.T @ values_GV).tolist()
    return Paired(right_C4=right_C4, num_groups=len(values_GV), products=tuple(map(tuple, products)))


def group_sums(
    softmax_right_N: npt.NDArray[np.bool_],
    head_right_N: npt.NDArray[np.bool_],
    labels_N: npt.NDArray[np.int64],
    groups_N: Sequence[str],
    num_classes: int,
) -> npt.NDArray[np.int64]:
    """(G, 2C): by group and class, right answers of the head minus the softmax's, then images."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups_N))}
    group_N = np.array([numbers[group] for group in groups_N], np.int64)
    values_GV = np.zeros((len(numbers), 2 * num_classes), np.int64)
    np.add.at(values_GV, (group_N, labels_N), head_right_N.astype(np.int64) - softmax_right_N)
    np.add.at(values_GV, (group_N, num_classes + labels_N), 1)
    return values_GV


@dataclass(frozen=True)
class Gain:
    """Gain of a head over the softmax. Shares; NaN where the counts do not define them."""

    balanced_accuracy: float
    interval: tuple[float, float]
    """95 %, normal, over groups; too narrow for classes with a handful of groups."""
    mcnemar_p: float
    """Exact two-sided p of McNemar's test on the images that only one of the two got right."""


def gain(paired: Paired, confidence: float = 0.95) -> Gain:
    """Divide the counts, once."""
    right_C4 = paired.right_C4.astype(np.float64)
    images_C = right_C4.sum(axis=1)
    has_C = images_C > 0
    if not has_C.any():
        return Gain(math.nan, (math.nan, math.nan), math.nan)
    safe_C = np.maximum(images_C, 1)
    gains_C = (right_C4[:, 2] - right_C4[:, 1]) / safe_C
    middle = float(gains_C[has_C].mean())
    lever_C = has_C / (has_C.sum() * safe_C)
    lever_V = np.concatenate([lever_C, -gains_C * lever_C])
    variance = float(lever_V @ np.asarray(paired.products, np.float64) @ lever_V)
    groups = paired.num_groups
    variance *= groups / (groups - 1) if groups > 1 else math.nan
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(max(variance, 0.0))
    only_softmax, only_head = int(paired.right_C4[:, 1].sum()), int(paired.right_C4[:, 2].sum())
    return Gain(middle, (middle - half, middle + half), mcnemar(only_softmax, only_head))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact McNemar test (McNemar 1947, doi:10.1007/BF02295996): two-sided binomial p of 1/2."""
    total, few = only_first + only_second, min(only_first, only_second)
    if total == 0:
        return 1.0
    log_half = total * math.log(0.5)
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) + log_half
        for k in range(few + 1)
    ]
    return min(1.0, 2 * sum(map(math.exp, logs)))
