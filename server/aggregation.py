"""Rules that turn the updates of several sites into one delta.

A rule is a function: admitted updates in, one delta out. It reads nothing else and changes
none of its inputs, so it can be tested with three-number arrays and swapped without touching
sampling, transport, checkpoints or reports. The rules themselves are in `server/rules/`; what
happens to the delta is `server/optimizer.py`'s question, so any rule goes with any algorithm.
"""

from functools import partial
from typing import assert_never

from common.config import Aggregation, GeometricMedian, Krum, Mean, Median, MultiKrum, TrimmedMean
from server.rules.clip import clipping
from server.rules.coordinates import median, trimmed_mean
from server.rules.distances import geometric_median, multi_krum
from server.rules.mean import weighted_mean
from server.rules.update import AdmittedUpdate, Rule

__all__ = ["AdmittedUpdate", "Rule", "build_rule", "weighted_mean"]


def build_rule(config: Aggregation) -> Rule:
    """The rule that a study names, on clipped deltas if it says so."""
    rule = _rule(config)
    return rule if config.norm_clip is None else clipping(rule, config.norm_clip)


def _rule(config: Aggregation) -> Rule:
    match config:
        case Mean():
            return weighted_mean
        case TrimmedMean():
            return partial(trimmed_mean, num_dropped=config.num_dropped)
        case Median():
            return median
        case Krum(num_byzantine=num_byzantine):
            return partial(multi_krum, num_byzantine=num_byzantine, num_selected=1)
        case MultiKrum(num_byzantine=num_byzantine, num_selected=num_selected):
            return partial(multi_krum, num_byzantine=num_byzantine, num_selected=num_selected)
        case GeometricMedian(iterations=iterations, smoothing=smoothing):
            return partial(geometric_median, iterations=iterations, smoothing=smoothing)
        case _:
            assert_never(config)
