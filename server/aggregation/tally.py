"""Rules that turn the updates of several sites into one delta.

A rule is a function: admitted updates in, one delta out. It reads nothing else and changes
none of its inputs, so it can be tested with three-number arrays and swapped without touching
sampling, transport, checkpoints or reports. The rules themselves are in the files beside this one. The step
along the delta is decided in `server_optimizer.py`, so any rule goes with any algorithm.

Updates arrive one after the other. A plain weighted mean adds each to a running sum and drops it, so the server's
memory does not grow with the number of sites. Every other rule needs them side by side. So does a bound on norms
that is a multiple of the round's median, and so does a limit on a site's share, which is known when all are there.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol, assert_never

from common.config import Aggregation, GeometricMedian, Krum, Mean, Median, MultiKrum, TrimmedMean
from common.weights import Arrays, Layout
from server.aggregation.coordinate_wise import median, trimmed_mean
from server.aggregation.distance_based import geometric_median, multi_krum
from server.aggregation.masked_mean import MaskedMean
from server.aggregation.mean import LARGEST as LARGEST_SUMMAND
from server.aggregation.mean import RunningMean, weighted_mean
from server.aggregation.norm_clipping import clipped, clipping
from server.aggregation.normalised import normalised_mean
from server.aggregation.update import AdmittedUpdate, Rule

__all__ = [
    "LARGEST_SUMMAND",
    "AdmittedUpdate",
    "Rule",
    "Tally",
    "build_rule",
    "build_tally",
    "weighted_mean",
]


class Tally(Protocol):
    """Collects the updates of one round as they arrive."""

    def add(self, update: AdmittedUpdate) -> None:
        """Add one update."""

    def result(self, without: Collection[str] = ()) -> Arrays:
        """The delta of all sites but these. Raises QuorumNotMet if none is left."""


def build_tally(
    config: Aggregation,
    *,
    side_by_side: bool,
    max_share: float = 1.0,
    way: Callable[[int], float] | None = None,
    masked: Layout | None = None,
) -> Tally:
    """A running mean where it suffices; `side_by_side` if sites may be left out after they were added.

    `max_share` is the largest share of the weight of one site. `way` is the length of so many steps, by which FedNova
    divides. `masked`: the layout of updates that come with masks.
    """
    if masked is not None:
        return MaskedMean(masked)
    if way is not None:
        rule = partial(normalised_mean, way=way, most=max_share)
        return _Holding(rule if config.norm_clip is None else clipping(rule, config.norm_clip))
    if isinstance(config, Mean) and not side_by_side and max_share == 1:
        return _Folding(config.norm_clip)
    return _Holding(build_rule(config, max_share))


class _Folding:
    """Holds a sum, and no update."""

    def __init__(self, norm_clip: float | None) -> None:
        self._norm_clip = norm_clip
        self._mean = RunningMean()

    def add(self, update: AdmittedUpdate) -> None:
        self._mean.add(update if self._norm_clip is None else clipped(update, self._norm_clip))

    def result(self, without: Collection[str] = ()) -> Arrays:
        assert not without, "what is folded in cannot be taken out"
        return self._mean.result()


class _Holding:
    """Holds every update until all are there."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._updates: list[AdmittedUpdate] = []

    def add(self, update: AdmittedUpdate) -> None:
        self._updates.append(update)

    def result(self, without: Collection[str] = ()) -> Arrays:
        return self._rule([update for update in self._updates if update.site not in without])


def build_rule(config: Aggregation, max_share: float = 1.0) -> Rule:
    """The rule that a study names, on clipped deltas if it says so."""
    rule = _rule(config, max_share)
    return rule if config.norm_clip is None else clipping(rule, config.norm_clip)


def _rule(config: Aggregation, max_share: float) -> Rule:
    match config:
        case Mean():
            return partial(weighted_mean, most=max_share)
        case TrimmedMean():
            return partial(trimmed_mean, num_dropped=config.num_dropped)
        case Median():
            return median
        case Krum(num_byzantine=num_byzantine):
            return partial(multi_krum, num_byzantine=num_byzantine, num_selected=1)
        case MultiKrum(num_byzantine=num_byzantine, num_selected=num_selected):
            return partial(multi_krum, num_byzantine=num_byzantine, num_selected=num_selected)
        case GeometricMedian(iterations=iterations, smoothing=smoothing):
            return partial(geometric_median, iterations=iterations, smoothing=smoothing, most=max_share)
        case _:
            assert_never(config)
