"""Waiting time for stragglers once a round has its quorum.

A slow site costs every other site time, and a round that does not wait loses the slow site's patients. The
study chooses between the two, and the choice becomes a number of seconds here. Nothing here reads a clock: the
rounds do, and pass the times.
"""

import math
from collections.abc import Sequence
from typing import assert_never

from common.config import CutOff, Grace, Percentile, WaitForAll

MEMORY = 5
"""Number of past rounds whose answer times `percentile` uses."""


def patience(grace: Grace, quorum_after_s: float | None, past_s: Sequence[float], deadline_s: float) -> float:
    """Seconds from the start of the round after which it goes on without the missing sites.

    `quorum_after_s` is the time of the quorum, None before it; `past_s` holds the answer times of the last
    rounds. Never more than `deadline_s`.
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
