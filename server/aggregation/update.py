"""Admitted updates, the input of every rule: one delta per site, in the order of site names.

No rule sees the order in which sites answered. Floating-point addition is not associative, so a sum in the order
of arrival would have other last bits on every run. A tie would be broken by the fastest connection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from common import weights
from common.errors import QuorumNotMet
from common.weights import Array, Arrays


@dataclass(frozen=True)
class AdmittedUpdate:
    """One site's update of one round, after admission."""

    site: str
    num_examples: int
    """Images trained on, at least 1; the weight of `delta`."""
    delta: Arrays
    """Trained minus received. All updates of a round have the same names, shapes and dtypes."""

    @cached_property
    def norm(self) -> float:
        """Euclidean norm of `delta` over all its tensors."""
        with np.errstate(over="ignore"):  # a delta too large to square has norm inf
            return weights.norm(self.delta)


Rule: TypeAlias = Callable[[Sequence[AdmittedUpdate]], dict[str, Array]]


def by_name(updates: Sequence[AdmittedUpdate]) -> list[AdmittedUpdate]:
    """`updates` in the order of site names. Raises QuorumNotMet if there are none."""
    ordered = sorted(updates, key=lambda update: update.site)
    if not ordered:
        raise QuorumNotMet(
            "found no update to average, expected at least one; the sites' own logs say what stopped them"
        )
    assert len({update.site for update in ordered}) == len(ordered), "a site has one vote a round"
    return ordered


def shares_of_examples(ordered: Sequence[AdmittedUpdate]) -> list[float]:
    """Each site's share of all examples."""
    num_examples = sum(update.num_examples for update in ordered)
    return [update.num_examples / num_examples for update in ordered]


def combine(ordered: Sequence[AdmittedUpdate], shares: Sequence[float]) -> dict[str, Array]:
    """The sum of `share * delta`, added in float64, in the dtype of the deltas."""
    combined: dict[str, Array] = {}
    for name, first in ordered[0].delta.items():
        total = np.zeros(first.shape, np.float64)
        # Shares, not counts: a share never carries a finite entry past the largest float.
        for update, share in zip(ordered, shares, strict=True):
            total += share * update.delta[name].astype(np.float64)
        combined[name] = total.astype(first.dtype)
    return combined
