"""Results over seeds, with numbers that can be worked by hand."""

import math
from pathlib import Path

import pytest

from common.metrics import Figures
from server.paper import experiment, results
from server.paper.results import estimate
from server.report.comparison_row import Row
from server.storage.history import RoundRecord, Scored, ScoredModel


def test_the_interval_is_students_over_the_seeds() -> None:
    found = estimate([70.0, 72.0, 74.0])
    assert found.mean == 72
    assert found.half == pytest.approx(4.303 * 2 / math.sqrt(3))  # standard deviation 2
    assert str(found) == "72.0 ± 5.0"


@pytest.mark.parametrize(("num_seeds", "quantile"), [(11, 2.228), (21, 2.086), (61, 2.000), (1001, 1.962)])
def test_beyond_the_table_the_quantile_is_students_too(num_seeds: int, quantile: float) -> None:
    values = [0.0, 2.0] * (num_seeds // 2) + [1.0]  # mean 1, n - 1 squares of 1: standard deviation 1
    assert estimate(values).half == pytest.approx(quantile / math.sqrt(num_seeds), rel=3e-4)


def test_one_seed_has_no_interval() -> None:
    assert str(estimate([70.0])) == "70.0"


def test_a_figure_that_a_seed_lacks_is_none() -> None:
    assert str(estimate([70.0, math.nan])) == "-"


def run_on(seed: int, confusion_CC: tuple[tuple[int, ...], ...], left_out_C: tuple[int, ...] = ()) -> Row:
    """A finished run with this confusion matrix on test images."""
    nan = math.nan
    figures = Figures(
        num_images=sum(map(sum, confusion_CC)),
        **dict.fromkeys((name for name in Figures.__dataclass_fields__ if name != "num_images"), nan),
    )
    scored = Scored(figures, (nan, nan), confusion_CC, left_out_C=left_out_C)
    model = ScoredModel("test", 1, scored, None, {"brain_mri": scored})
    record = RoundRecord(2, 1.0, 1, True, None, (), None, model)
    return Row("clip", seed, (record,), None, Path("nowhere"))


MATRIX = ((0, 0, 0, 0), (1, 2, 0, 0), (0, 0, 3, 1), (0, 0, 0, 5))


def test_the_number_of_test_images_and_each_class_without_any_are_named(tmp_path: Path) -> None:
    """Rows of the matrix are true classes: 0 glioma, 3 meningioma, 4 without a tumour, 5 of the pituitary."""
    brain = experiment.load("clip-brain-mri")
    results.write(brain, "small", [run_on(0, MATRIX), run_on(1, MATRIX)], (), tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "12 test images: glioma 0, meningioma 3, notumor 4, pituitary 5." in text
    assert "**No test image of glioma: every mean over the classes is without it.**" in text


def test_runs_on_other_test_images_are_named_and_what_a_policy_leaves_out_is_there(tmp_path: Path) -> None:
    brain = experiment.load("clip-brain-mri")
    rows = [run_on(0, MATRIX), run_on(1, MATRIX, left_out_C=(2, 0, 0, 0))]
    results.write(brain, "small", rows, (), tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "12 test images (clip, seed 0): glioma 0, meningioma 3" in text
    assert "14 test images (clip, seed 1): glioma 2, meningioma 3" in text
    assert text.count("No test image of glioma") == 1
