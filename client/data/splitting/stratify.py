"""Stratified dealing of whole groups into bins: each bin gets its share of every class.

Every simulated federation uses it, and every split but one that draws each patient by itself (`stratified: false`). It
is our own code, in whole numbers, so that a seed means the same on every machine and with every version of a library:
groups come in the order of a hash of seed and name, whatever the order of the rows, and each goes to the bin that lacks
most of its classes. Groups of several classes come first; those of one class then even out what these left.

If each group is of one class, no bin is further from its share of a class than the largest group
of the class is large; with two bins, half of that.
"""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate


def deal(
    strata: Sequence[str], groups: Sequence[str], shares: Mapping[str, Sequence[float]], seed: int
) -> list[int]:
    """The bin of each image, given its stratum and its group.

    `shares` says of each stratum which part each bin is to get; they add up to 1.
    """
    content: dict[str, Counter[str]] = {}
    for stratum, group in zip(strata, groups, strict=True):
        content.setdefault(group, Counter())[stratum] += 1
    sizes = Counter(strata)
    num_bins = len(next(iter(shares.values()))) if shares else 0
    loads = [Counter[str]() for _ in range(num_bins)]
    seen: Counter[str] = Counter()
    home: dict[str, int] = {}

    def excess(place: int, group: str) -> tuple[float, float]:
        """How much the bin is ahead of its share in the group's strata, and in all; small is behind."""
        of_strata = sum(
            count * (loads[place][name] - shares[name][place] * seen[name]) / sizes[name] ** 2
            for name, count in sorted(content[group].items())
        )
        in_all = sum(loads[place].values()) - sum(shares[name][place] * seen[name] for name in sorted(seen))
        return of_strata, in_all

    for group in sorted(content, key=lambda name: (-len(content[name]), _shuffled(seed, name))):
        seen.update(content[group])
        best = min(range(num_bins), key=lambda place: (*excess(place, group), place))
        loads[best].update(content[group])
        home[group] = best
    return [home[group] for group in groups]


def deal_alone(groups: Sequence[str], shares: Sequence[float], seed: int, draw: str) -> list[int]:
    """The bin of each image, drawn for its group by itself: a group more changes the bin of no other.

    `draw` names what is drawn, so that two draws of one seed have nothing to do with each other.
    """
    bounds, last = list(accumulate(shares)), len(shares) - 1
    home = {
        group: min(
            bisect_right(bounds, int.from_bytes(_shuffled(seed, f"{draw}\0{group}")[:8]) / 2**64), last
        )
        for group in set(groups)
    }
    return [home[group] for group in groups]


def _shuffled(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogateescape")).digest()
