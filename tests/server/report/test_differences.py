"""Differences of runs: paired where the test images are the same, over seeds where there are several."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from common.files import write_json
from common.metrics.replicates import NUM_REPLICATES
from server.report import differences
from server.report.intervals_table import TITLES
from server.storage import intervals
from server.storage.intervals import Figure, Intervals, SiteFigures


def run(value: float, size: float, test_set: str = "0" * 16) -> Intervals:
    """One site whose figures all have this value, and deviations of `size` and -`size` in turn."""
    deviations = tuple(np.tile([size, -size], NUM_REPLICATES // 2).tolist())
    figures = {name: Figure(value=value, deviations=deviations, num_free=100) for name in TITLES}
    site = SiteFigures(num_patients=101, test_set=test_set, figures=figures)
    return Intervals(sites={"north": site}, pooled=figures)


def kept(folder: Path, found: Intervals) -> Path:
    folder.mkdir()
    write_json(folder / intervals.FILE, found)
    return folder


def test_runs_on_the_same_patients_are_tested_by_their_difference(tmp_path: Path) -> None:
    first, second = kept(tmp_path / "a", run(0.70, 0.05)), kept(tmp_path / "b", run(0.66, 0.04))
    found = differences.of_runs(first, second)
    one = found["balanced_accuracy"]
    # Both intervals are wide (0.05 and 0.04 times 1.98) and overlap; the deviations of the difference are 0.01.
    assert one.is_paired
    assert one.estimate.deviation == pytest.approx(0.01)
    assert differences.cells(one) == ["+4.0", "+2.0 to +6.0", "< 0.001"]
    assert "| balanced accuracy | +4.0 | +2.0 to +6.0 | < 0.001 |" in differences.table(found)
    assert differences.of_runs(first, second, "north")["f1_macro"].is_paired


def test_runs_on_other_images_are_taken_as_independent(tmp_path: Path) -> None:
    first = kept(tmp_path / "a", run(0.70, 0.03))
    second = kept(tmp_path / "b", run(0.66, 0.04, test_set="1" * 16))
    one = differences.of_runs(first, second)["balanced_accuracy"]
    assert not one.is_paired
    assert one.estimate.deviation == pytest.approx(0.05)  # 3, 4, 5
    assert one.estimate.p > 0.4


def test_a_run_without_sums_or_without_the_site_is_an_error(tmp_path: Path) -> None:
    first, second = kept(tmp_path / "a", run(0.70, 0.03)), tmp_path / "b"
    second.mkdir()
    with pytest.raises(ConfigError, match=r"b has no intervals\.json: its test is not over"):
        differences.of_runs(first, second)
    with pytest.raises(ConfigError, match="has no sums of east; it has those of north"):
        differences.of_runs(first, first, "east")


def test_a_run_and_itself_do_not_differ(tmp_path: Path) -> None:
    first = kept(tmp_path / "a", run(0.70, 0.03))
    assert differences.cells(differences.of_runs(first, first)["balanced_accuracy"]) == ["+0.0", "-", "-"]


def test_seeds_widen_a_variants_interval() -> None:
    one = differences.of_variant({0: run(0.70, 0.03)}, "balanced_accuracy")
    two = differences.of_variant({0: run(0.65, 0.03), 1: run(0.75, 0.03)}, "balanced_accuracy")
    assert one is not None
    assert two is not None
    # 0.03² over patients in both; two seeds add 0.005 / 2
    assert (one.variance_seeds, two.variance_seeds) == pytest.approx((0, 0.0025))
    assert two.value == pytest.approx(one.value)


def test_a_figure_that_one_seed_lacks_is_not_there() -> None:
    lacking = run(0.7, 0.03).model_copy(update={"pooled": {}})
    assert differences.of_variant({0: run(0.7, 0.03), 1: lacking}, "balanced_accuracy") is None
    assert differences.difference({0: lacking}, {0: lacking}, "balanced_accuracy") is None
    assert differences.cells(None) == ["-", "-", "-"]
