"""The table of sites and models, and the difference of two models with its interval."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from common.config import StudyConfig
from server.report import write
from server.report.comparison_row import Row
from server.simulation import models_table as matrix
from server.simulation.models_table import Difference, difference
from server.state import RoundState
from server.storage.history import Scored, read_rounds
from tests.server.simulation.test_grid import BASE, score

NO_FIGURES: Any = None


def scored(*confusion: tuple[int, ...]) -> Scored:
    return Scored(NO_FIGURES, (0.0, 1.0), confusion)


def test_a_difference_of_balanced_accuracies_has_the_interval_worked_by_hand() -> None:
    """Recalls 8/10 and 6/10 against 5/10 and 5/10; shares with one right and one wrong more: 9/12, 7/12, 6/12, 6/12."""
    found = difference(scored((8, 2), (4, 6)), scored((5, 5), (5, 5)))
    variance = (9 / 12 * 3 / 12 + 7 / 12 * 5 / 12 + 2 * 1 / 4) / 12 / 4
    half = 1.959964 * math.sqrt(variance)
    assert found.value == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-5)


def test_a_class_without_images_is_not_in_the_difference() -> None:
    found = difference(scored((1, 0, 0), (0, 1, 1), (0, 0, 0)), scored((0, 1, 0), (0, 2, 0), (0, 0, 0)))
    assert found.value == pytest.approx((1 + 0.5) / 2 - (0 + 1) / 2)
    nothing = difference(scored((0, 0), (0, 0)), scored((1, 0), (0, 1)))
    assert isinstance(nothing, Difference)
    assert math.isnan(nothing.value)


def leave(folder: Path, predictions: list[int]) -> Row:
    """A finished run whose model says `predictions` for the six images of the two sites."""
    study = StudyConfig.model_validate({**BASE, "name": folder.name})
    scores = {"north": score([0, 0, 1, 2], predictions[:4]), "south": score([2, 2], predictions[4:])}
    state = RoundState(
        round=1, weights={}, layout={}, preprocessing={}, closing=True, scores=scores, test_scores=scores
    )
    folder.mkdir()
    write.append_round(folder, state, study)
    return Row(folder.name, 0, read_rounds(folder), None, folder)


def test_the_table_has_a_row_a_model_and_a_column_a_site(tmp_path: Path) -> None:
    rows = [
        leave(tmp_path / "federated", [0, 0, 1, 2, 2, 2]),
        leave(tmp_path / "local-north", [0, 1, 1, 2, 2, 0]),
        Row("local-south", 0, (), "it broke | off", tmp_path),
    ]
    pairs = [("federated", "local-north", ("north",)), ("federated", "local-south", ("south",))]
    table = matrix.write("matrix", "skin", tmp_path, rows, pairs, synthetic=True)
    text = table.path.read_text()
    assert "SYNTHETIC" in text
    assert "| federated | 100.0 | 100.0 | 100.0 |" in text
    assert "| local-north | 83.3 | 50.0 | 72.2 |" in text  # (1/2 + 1 + 1) / 3, 1/2, (1/2 + 1 + 2/3) / 3
    assert "| *test images* | 4 | 2 | 6 |" in text
    assert "| federated - local-north | north | +16.7 |" in text
    assert "| federated - local-south | south | - | - |" in text
    assert "it broke \\| off" in text
    assert dict(table.failures) == {"local-south": "it broke | off"}
    lines = list(csv.DictReader((tmp_path / "matrix.csv").read_text().splitlines()))
    assert [(line["model"], line["site"]) for line in lines[:3]] == [
        ("federated", "north"), ("federated", "south"), ("federated", "all sites"),
    ]  # fmt: skip
    assert lines[3]["balanced accuracy"] == "0.8333"
