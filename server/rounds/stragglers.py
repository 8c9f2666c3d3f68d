"""How long a round waits for the rest once it has enough.

A slow site costs every other site its time, and a round that never waits loses the slow site's
patients. The study says which it wants; here that becomes a number of seconds. Nothing here
reads a clock: the rounds do, and say what they saw.
"""

import math
from collections.abc import Sequence
from typing import assert_never

from common.config import CutOff, Grace, Percentile, WaitForAll

MEMORY = 5
"""Rounds that `percentile` looks back on."""


def patience(grace: Grace, quorum_after_s: float | None, past_s: Sequence[float], deadline_s: float) -> float:
    """Seconds from the start of the round after which it goes on without who is missing.

    `quorum_after_s` is when enough had answered, None while they have not; `past_s` holds how
    long sites took to answer in the last rounds. Never more than `deadline_s`.
    """
    if quorum_after_s is None:
        return deadline_s
    match grace:
        case WaitForAll():
            return deadline_s
        case CutOff(after_quorum_s=more):
            return min(deadline_s, quorum_after_s + more)
        case Percentile(percentile=percentile, factor=factor):
            if not past_s:
                return deadline_s
            return min(deadline_s, max(quorum_after_s, factor * nearest_rank(past_s, percentile)))
        case _:
            assert_never(grace)


def nearest_rank(values: Sequence[float], percentile: float) -> float:
    """The smallest value that at least `percentile` % of all values do not exceed."""
    return sorted(values)[max(0, math.ceil(percentile / 100 * len(values)) - 1)]
