"""Scores of a model: counts that add up, and the figures divided from them."""

from common.metrics.counts import (
    NUM_BINS,
    NUM_CALIBRATION_BINS,
    Counts,
    Figures,
    Score,
    count,
    empty,
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
