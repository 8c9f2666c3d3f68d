"""Control variates: the server's half of SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, option II).

A site's control variate c_i is the mean gradient of its last round, the server's c is their mean over all sites. From
its delta, its number of steps and c a site's change of c_i follows, because option II is
c_i' - c_i = -c - delta_i / (sum of the learning rates). So no site sends it.

Every site has a fixed share, as the mean over all training images gives it, and a site that is not in a round keeps
the c_i of its last one that counted. So c stays the mean of all c_i, also where few answer.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from common.weights import Array, Arrays
from server.aggregation.update import AdmittedUpdate, by_name, combine

CONTROL = "control"
"""Slot of the server's control variate in the state of the optimizer."""


def next_control(
    control: Arrays,
    updates: Sequence[AdmittedUpdate],
    shares: Mapping[str, float],
    rate_sum: Callable[[int], float],
) -> dict[str, Array]:
    """The server's control variate after a round; `control` is empty before the first.

    `updates` are those of the sites that count, `shares` the fixed share of every training site by name, and `rate_sum`
    the sum of the learning rates of so many steps.
    """
    ordered = by_name(updates)
    moved = combine(
        ordered,
        [-shares[update.site] / rate_sum(update.num_steps) for update in ordered],
        parameters_only=True,
    )
    if not control:
        return dict(moved)
    kept = 1 - sum(shares[update.site] for update in ordered)
    return {
        name: np.asarray(kept * control[name].astype(np.float64) + array).astype(array.dtype)
        for name, array in moved.items()
    }
