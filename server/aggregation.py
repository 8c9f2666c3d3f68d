"""Rules that turn the updates of several sites into one delta.

A rule is a function: admitted updates in, one delta out. It reads nothing else and changes
none of its inputs, so it can be tested with three-number arrays and swapped without touching
sampling, transport, checkpoints or reports.

A rule never sees the order in which sites answered. Floating-point addition is not
associative, so a sum in order of arrival would give other last bits on every run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

import numpy as np

from common.config import Algorithm, FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi
from common.errors import QuorumNotMet
from common.weights import Array, Arrays


@dataclass(frozen=True)
class AdmittedUpdate:
    """What one site trained in one round, after admission."""

    site: str
    num_examples: int
    """Images trained on, at least 1; the weight of `delta`."""
    delta: Arrays
    """Trained minus received. All updates of a round have the same names, shapes and dtypes."""


Rule: TypeAlias = Callable[[Sequence[AdmittedUpdate]], dict[str, Array]]


def build_rule(algorithm: Algorithm) -> Rule:
    """The rule of an algorithm; what happens to its delta is `server/optimizer.py`'s question."""
    match algorithm:
        case FedAvg() | FedProx() | FedAvgM() | FedAdam() | FedYogi() | FedAdagrad():
            return weighted_mean
        case _:
            assert_never(algorithm)


def weighted_mean(updates: Sequence[AdmittedUpdate]) -> dict[str, Array]:
    """The mean of deltas, weighted by examples (McMahan et al. 2017, arXiv:1602.05629, algorithm 1).

    Adds in float64 in the order of site names and returns the dtype of the deltas. Raises
    QuorumNotMet if there is nothing to average.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    if not ordered:
        raise QuorumNotMet(
            "found no update to average, expected at least one; the sites' own logs say what stopped them"
        )
    assert len({update.site for update in ordered}) == len(ordered), "a site has one vote a round"
    num_examples = sum(update.num_examples for update in ordered)
    # Shares, not counts: a share never carries a finite entry past the largest float.
    shares = [update.num_examples / num_examples for update in ordered]
    mean: dict[str, Array] = {}
    for name, first in ordered[0].delta.items():
        total = np.zeros(first.shape, np.float64)
        for update, share in zip(ordered, shares, strict=True):
            total += share * update.delta[name].astype(np.float64)
        mean[name] = total.astype(first.dtype)
    return mean
