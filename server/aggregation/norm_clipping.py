"""Norm clipping: a delta that is too long is scaled down, and its direction stays.

The norm is that of the parameters, and they alone are scaled: a running mean is measured, not a step.

The scaled tensors are computed when a rule reads them and are not kept, so clipping needs no second copy of a
site's model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.weights import Array, Arrays
from server.aggregation.update import AdmittedUpdate, Rule


def clipping(rule: Rule, bound: float) -> Rule:
    """`rule` on deltas of norm `bound` at most (Sun et al. 2019, arXiv:1911.07963, section 4)."""

    def clipped_rule(updates: Sequence[AdmittedUpdate]) -> Arrays:
        return rule([clipped(update, bound) for update in updates])

    return clipped_rule


def clipped(update: AdmittedUpdate, bound: float) -> AdmittedUpdate:
    """The update with a delta of norm `bound` at most; itself if it is short enough."""
    if update.norm <= bound:
        return update
    return replace(update, delta=_Scaled(update.delta, bound / update.norm, update.statistics))


@dataclass(frozen=True)
class _Scaled(Mapping[str, Array]):
    """`factor` times each array but those in `unscaled`, at the moment it is read."""

    arrays: Arrays
    factor: float
    unscaled: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Array:
        array = self.arrays[name]
        if name in self.unscaled:
            return array
        return np.asarray(self.factor * array.astype(np.float64)).astype(array.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)
