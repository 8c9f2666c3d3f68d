"""One line per run of a grid: what its final weights reached, or why it failed."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.config import StudyConfig
from server.config import SimulatedSites
from server.report import plots
from server.report.comparison import figures_of, write_comparison
from server.report.comparison_row import Row
from server.report.write import append_round
from server.state import RoundState
from server.storage import history


@pytest.fixture
def finished(tmp_path: Path, study: StudyConfig, random_state: Callable[[int], RoundState]) -> Row:
    """Three rounds and the closing evaluation, 4.25 s each."""
    for number in range(1, 5):
        append_round(tmp_path, random_state(number), study)
    return Row("fedavg", 0, history.read_rounds(tmp_path), failure=None, run_dir=tmp_path)


def test_a_finished_run_stands_with_its_last_weights_and_its_minutes(finished: Row) -> None:
    line = figures_of(finished)
    last = finished.rounds[-1].test
    assert last is not None
    assert (line["outcome"], line["rounds"]) == ("finished", "3")
    assert line["balanced accuracy"] == f"{last.pooled.figures.balanced_accuracy:.3f}"
    assert line["balanced accuracy unseen"] == f"{last.sites['unseen'].figures.balanced_accuracy:.3f}"
    assert line["minutes"] == "0.3"  # 4 x 4.25 s = 17 s


def test_a_failed_run_stands_with_its_reason_and_without_figures(tmp_path: Path) -> None:
    row = Row("krum", 1, (), failure="2 of 3 sites answered", run_dir=tmp_path)
    assert figures_of(row) == {"variant": "krum", "seed": "1", "outcome": "failed: 2 of 3 sites answered"}
    assert figures_of(Row("krum", 1, (), None, tmp_path))["outcome"] == "failed: no scores"


def test_table_and_csv_have_a_line_for_every_run(
    finished: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "comparison", lambda *_, **__: b"")
    failed = Row("a|b", 1, (), failure="no quorum", run_dir=tmp_path)
    federation = SimulatedSites(classes=("bkl", "mel", "nv"), sites={}, synthetic=True)
    write_comparison(tmp_path, [finished, failed], federation)
    banner, _, head, _, first, second = (tmp_path / "comparison.md").read_text().splitlines()
    assert banner.startswith("**SYNTHETIC")
    assert head.startswith("| variant | seed | outcome |")
    assert first.startswith("| fedavg | 0 | finished |")
    assert second.startswith("| a\\|b | 1 | failed: no quorum |")
    with (tmp_path / "comparison.csv").open(newline="") as file:
        assert [row["variant"] for row in csv.DictReader(file)] == ["fedavg", "a|b"]


# --- runs that are not what their neighbours are ---------------------------------------------------


def test_an_incomplete_run_stands_with_its_figures_and_the_reason(finished: Row) -> None:
    line = figures_of(replace(finished, lacking="3 rounds; unseen did not score the final model"))
    assert line["outcome"] == "finished, incomplete: 3 rounds; unseen did not score the final model"
    assert line["rounds"] == "3"


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each picture: whether its title says that the runs were scored on the same images."""
    said: list[bool] = []

    def draw(*_: object, same_images: bool, **__: object) -> bytes:
        said.append(same_images)
        return b""

    monkeypatch.setattr(plots, "comparison", draw)
    return said


def test_runs_that_were_scored_by_other_sites_are_not_said_to_share_their_images(
    finished: Row, tmp_path: Path, titles: list[bool]
) -> None:
    federation = SimulatedSites(classes=("bkl", "mel", "nv"), sites={}, synthetic=False)
    write_comparison(tmp_path, [finished, replace(finished, seed=1)], federation)
    assert "not all scored" not in (tmp_path / "comparison.md").read_text()
    last = finished.rounds[-1]
    assert last.test is not None
    sites = {site: score for site, score in last.test.sites.items() if site != "unseen"}
    rest = replace(last, test=replace(last.test, sites=sites))
    fewer = replace(finished, seed=1, rounds=(*finished.rounds[:-1], rest))
    write_comparison(tmp_path, [finished, fewer], federation)
    text = (tmp_path / "comparison.md").read_text()
    assert "**The runs were not all scored on the same test images.**" in text
    # 4 sites of 30 images, then 3
    assert "fedavg, seed 0: 120 images. fedavg, seed 1: 90 images, not by unseen." in text
    assert titles == [True, False]


def test_a_failed_run_says_nothing_of_the_images_of_the_others(
    finished: Row, tmp_path: Path, titles: list[bool]
) -> None:
    federation = SimulatedSites(classes=("bkl", "mel", "nv"), sites={}, synthetic=False)
    write_comparison(tmp_path, [finished, replace(finished, seed=1, failure="no quorum")], federation)
    assert titles == [True]
