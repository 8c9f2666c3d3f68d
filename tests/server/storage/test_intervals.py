"""`intervals.json`: what a run keeps of the sums over patients."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.config import StudyConfig
from common.errors import StorageError
from common.metrics import Score
from common.metrics.replicates import NUM_REPLICATES, Replicates
from server.state import RoundState
from server.storage import intervals

RandomState = Callable[[int], RoundState]


def sums(score: Score, seed: int, num_patients: int = 30) -> Replicates:
    """Sums as a site would send them whose images each are a patient, times ten images."""
    draws = np.random.default_rng(seed).standard_normal((NUM_REPLICATES, 3 * len(score.confusion_CC) + 1))
    return Replicates(
        num_patients=num_patients, test_set=f"{seed:016x}", sums=tuple(map(tuple, draws.round(3).tolist()))
    )


def closing(random_state: RandomState, *sites: str) -> RoundState:
    state = replace(random_state(4), closing=True)
    found = {
        site: sums(score, place)
        for place, (site, score) in enumerate(state.test_scores.items())
        if site in sites
    }
    return replace(state, replicates=found)


def test_each_site_and_all_of_them_are_kept(
    tmp_path: Path, study: StudyConfig, random_state: RandomState
) -> None:
    state = closing(random_state, *random_state(4).test_scores)
    intervals.keep(tmp_path, state, study)
    found = intervals.load(tmp_path)
    assert list(found.sites) == sorted(state.test_scores)
    assert found.without == {}
    first, *_ = found.sites.values()
    assert (first.num_patients, first.test_set) == (30, "0" * 16)
    assert found.pooled["accuracy"].num_free == 30 * len(found.sites) - len(found.sites)
    assert found.pooled["accuracy"].resampled.variance > 0


def test_a_site_without_sums_is_named_with_its_images(
    tmp_path: Path, study: StudyConfig, random_state: RandomState
) -> None:
    first, *others = sorted(random_state(4).test_scores)
    state = closing(random_state, first)
    intervals.keep(tmp_path, state, study)
    found = intervals.load(tmp_path)
    assert list(found.sites) == [first]
    assert found.without == {site: state.test_scores[site].num_images for site in others}


def test_a_repeated_test_without_sums_leaves_no_file(
    tmp_path: Path, study: StudyConfig, random_state: RandomState
) -> None:
    intervals.keep(tmp_path, closing(random_state, *random_state(4).test_scores), study)
    intervals.keep(tmp_path, random_state(3), study)  # a round changes nothing
    assert (tmp_path / intervals.FILE).exists()
    intervals.keep(tmp_path, closing(random_state), study)
    assert not (tmp_path / intervals.FILE).exists()
    assert intervals.load(tmp_path) == intervals.Intervals()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / intervals.FILE).write_text('{"pooled": {"accuracy": {"value": "much"}}}')
    with pytest.raises(StorageError, match=r"intervals\.json"):
        intervals.load(tmp_path)
