"""The average of the weights of several rounds, which takes the place of the last round's at the end.

Rounds go on from their own weights; the average is kept beside them and weakens the noise of the last rounds (SWA,
Izmailov et al. 2018, arXiv:1803.05407). Running statistics are averaged, too.
"""

from typing import assert_never

import numpy as np

from common.config import Averaging, ExponentialAverage, LastRounds
from common.weights import Array, Arrays

AVERAGE = "average"
"""Slot of the average in the state of the optimizer."""


def next_average(
    config: Averaging, before: Arrays, weights: Arrays, number: int, rounds: int
) -> dict[str, Array]:
    """The average after round `number` of `rounds`; empty before the first round that is in it. So is `before`."""
    match config:
        case ExponentialAverage(decay=decay):
            gain = 1 - decay
        case LastRounds(rounds=last):
            place = number - max(0, rounds - last)  # from 1
            if place < 1:
                return {}
            gain = 1 / place
        case _:
            assert_never(config)
    if not before:
        return dict(weights)
    return {
        name: np.asarray(
            before[name] + gain * (array.astype(np.float64) - before[name].astype(np.float64))
        ).astype(array.dtype)
        for name, array in weights.items()
    }
