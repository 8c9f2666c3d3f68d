"""Scores of a model: counts that add up, and the figures divided from them."""

from common.metrics.counts import (
    NUM_BINS,
    NUM_CALIBRATION_BINS,
    Counts,
    Score,
    count,
    empty,
)
from common.metrics.figures import (
    Figures,
    figures,
)

__all__ = [
    "Counts",
    "Figures",
    "NUM_BINS",
    "NUM_CALIBRATION_BINS",
    "Score",
    "count",
    "empty",
    "figures",
]
