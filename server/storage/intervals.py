"""Figures of the final test with their replicates, per site and pooled: `intervals.json`.

The replicates of the sites' counts are turned into those of the figures at once, and are not kept themselves. Two runs
can be compared from their files as long as the sites were the same and had the same test images.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from common import seeds
from common.config import StudyConfig
from common.files import read_json, write_json
from common.metrics import Score, intervals
from common.metrics.intervals import Resampled
from common.metrics.replicates import NUM_REPLICATES, Replicates, TestSet
from common.settings import Frozen
from server.state import RoundState

FILE = "intervals.json"
_DIGITS = 8

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Figure(Frozen):
    """One figure and its deviations when patients are drawn again."""

    value: Finite
    deviations: Annotated[tuple[Finite, ...], Field(min_length=NUM_REPLICATES, max_length=NUM_REPLICATES)]
    num_free: Annotated[int, Field(ge=1)]

    @property
    def resampled(self) -> Resampled:
        """The same, as numbers to compute with."""
        return Resampled(self.value, np.array(self.deviations), self.num_free)


class SiteFigures(Frozen):
    """One site's figures."""

    num_patients: Annotated[int, Field(ge=1)]
    test_set: TestSet
    figures: dict[str, Figure]


class Intervals(Frozen):
    """What the file holds."""

    sites: dict[str, SiteFigures] = Field(default_factory=dict)
    """Sites that sent replicates."""
    without: dict[str, int] = Field(default_factory=dict)
    """Test images of sites that sent none, by site: in the pooled figures each counts as a patient."""
    pooled: dict[str, Figure] = Field(default_factory=dict)


def keep(run_dir: Path, state: RoundState, study: StudyConfig) -> None:
    """Write the file after the final test; one of an earlier try goes. Raises StorageError."""
    if not state.closing:
        return
    found = of_test(state.test_scores, state.replicates, seeds.derive(study.seed, study.fingerprint))
    if found.sites:
        write_json(run_dir / FILE, found)
    else:
        (run_dir / FILE).unlink(missing_ok=True)


def load(run_dir: Path) -> Intervals:
    """What is on record; nothing without a file. Raises StorageError."""
    return read_json(run_dir / FILE, Intervals) or Intervals()


def of_test(scores: Mapping[str, Score], replicates: Mapping[str, Replicates], seed: int) -> Intervals:
    """The figures of each site and of all of them."""
    scored = {site: score for site, score in sorted(scores.items()) if score.num_images}
    sites = {
        site: SiteFigures(
            num_patients=replicates[site].num_patients,
            test_set=replicates[site].test_set,
            figures=_described(intervals.of_scores({site: score}, replicates, seed=seed)),
        )
        for site, score in scored.items()
        if site in replicates
    }
    return Intervals(
        sites=sites,
        without={site: score.num_images for site, score in scored.items() if site not in sites},
        pooled=_described(intervals.of_scores(scored, replicates, seed=seed)),
    )


def _described(found: Mapping[str, Resampled]) -> dict[str, Figure]:
    return {
        name: Figure(
            value=one.value,
            deviations=tuple(np.round(one.deviations_R, _DIGITS).tolist()),
            num_free=max(one.num_free, 1),
        )
        for name, one in found.items()
        if np.isfinite(one.value)
    }
