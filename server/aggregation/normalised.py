"""The mean of deltas that are as long as one mean way: FedNova's rule (Wang et al. 2020, arXiv:2007.07481, eq. 10).

Each delta is divided by the length of its site's way, and their mean is multiplied by the mean length. So a
site counts by its images, and no longer also by how many steps it took.
"""

from collections.abc import Callable, Sequence

from common.lazy_arrays import Computed
from common.weights import Arrays
from server.aggregation.update import AdmittedUpdate, by_name, combine, shares_of_examples


def normalised_mean(
    updates: Sequence[AdmittedUpdate], *, way: Callable[[int], float], most: float = 1.0
) -> Arrays:
    """The mean of these updates, none with a larger share than `most`; `way` is the length of so many steps.

    Running statistics are measured, not walked to, and take the plain mean. Raises QuorumNotMet if there is nothing
    to average.
    """
    ordered = by_name(updates)
    shares = shares_of_examples(ordered, most)
    lengths = [way(update.num_steps) for update in ordered]
    mean_length = sum(share * length for share, length in zip(shares, lengths, strict=True))
    factors = [share * mean_length / length for share, length in zip(shares, lengths, strict=True)]
    plain, parameters = combine(ordered, shares), combine(ordered, factors, parameters_only=True)
    return Computed(plain, lambda name: (parameters if name in parameters else plain)[name])
