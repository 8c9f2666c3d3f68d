"""The mean weighted by examples: what FedAvg is, and what any single site can move anywhere."""

from collections.abc import Sequence

from common.weights import Array
from server.rules.update import AdmittedUpdate, by_name, combine, shares_of_examples


def weighted_mean(updates: Sequence[AdmittedUpdate]) -> dict[str, Array]:
    """The mean of deltas, weighted by examples (McMahan et al. 2017, arXiv:1602.05629, algorithm 1).

    Raises QuorumNotMet if there is nothing to average.
    """
    ordered = by_name(updates)
    return combine(ordered, shares_of_examples(ordered))
