"""The test by subgroup in a line of `rounds.jsonl`: counts of all sites together, by attribute.

A line has no site's own counts by subgroup. It names the sites that they are of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.state import RoundState


@dataclass(frozen=True)
class SubgroupScores:
    """The counts of one attribute."""

    sites: tuple[str, ...]
    """Sites that counted by it, in the order of names."""
    confusion_VCC: tuple[tuple[tuple[int, ...], ...], ...]
    """By value, true class and predicted class."""


def describe(state: RoundState) -> dict[str, Any]:
    """The counts of a state as JSON."""
    names = sorted({name for counts in state.subgroups.values() for name in counts})
    found = {}
    for name in names:
        by_site = {site: counts[name] for site, counts in state.subgroups.items() if name in counts}
        pooled_VCC = np.sum([counts.confusion_VCC for counts in by_site.values()], axis=0)
        found[name] = {"sites": sorted(by_site), "confusion_VCC": pooled_VCC.tolist()}
    return found


def read(there: Mapping[str, Any]) -> dict[str, SubgroupScores]:
    """The counts in a line, by attribute."""
    return {
        name: SubgroupScores(
            tuple(one["sites"]),
            tuple(tuple(tuple(row) for row in value) for value in one["confusion_VCC"]),
        )
        for name, one in there.items()
    }
