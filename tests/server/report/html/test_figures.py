"""Figures of the page, on counts that can be added up by hand."""

import pytest

from server.report.html import figures, site_curves
from server.report.html.charts import Series, chart, ticks
from server.report.write import append_round
from server.storage import last_scores


def test_ticks_are_round_numbers():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0, 3, whole=True) == [0, 1, 2, 3]
    assert ticks(0, 500, whole=True) == [0, 100, 200, 300, 400, 500]
    assert ticks(2, 2) == [2]


def test_a_line_runs_from_corner_to_corner_and_skips_what_is_no_number():
    drawn = chart(
        "t", "d", [Series("a", [(0, 0), (0.5, float("nan")), (1, 1)], "c0 d0")],
        x_label="x", y_label="y", x_range=(0, 1), y_range=(0, 1),
    )  # fmt: skip
    assert drawn.lines[0].path == "M46.0 258.0 L408.0 12.0"


def test_the_forest_has_wilsons_interval_of_every_site(make_outcome):
    outcome = make_outcome()
    accuracy, *recalls = figures.forests(outcome)
    assert [row.name for row in accuracy.rows] == ["north", "south", "unseen (only scores)", "west", "pooled"]
    pooled = outcome.final.pooled
    assert accuracy.rows[-1].value == pytest.approx(100 * pooled.figures.accuracy)
    assert (accuracy.rows[-1].low, accuracy.rows[-1].high) == pytest.approx(
        [100 * end for end in pooled.accuracy_interval]
    )
    assert [forest.rows[-1].value for forest in recalls] == pytest.approx(
        [100 * recall for recall in pooled.figures.recall_C]
    )


def test_every_site_has_its_own_confusion_matrix(make_outcome):
    outcome = make_outcome()
    found = {matrix.name: matrix for matrix in figures.matrices(outcome)}
    assert list(found) == ["All sites", "north", "south", "unseen", "west"]
    counts = [[cell.count for cell in cells] for _, cells in found["south"].rows]
    assert counts == [list(row) for row in outcome.final.sites["south"].confusion_CC]


def test_a_shade_is_the_share_of_the_true_class():
    row = figures.Cell(3, 10)  # three of three
    assert figures.share("x", 3, 3).value == 100
    assert row.shade == 10


def test_thresholds_come_from_validation_images_and_are_applied_to_test_images(
    make_outcome, tmp_path, random_state, study
):
    folder = tmp_path / "kept"
    for number in range(1, 5):
        append_round(folder, random_state(number), study)
    rows = figures.thresholds(make_outcome(), last_scores.load(folder))
    assert [row.how for row in rows[:3]] == [
        "fixed at 0.5",
        "90 % found in validation",
        "95 % found in validation",
    ]
    # The generated scores are the same on both sides, so the share that was wanted is reached.
    assert all(row.sensitivity.value >= 90 for row in rows if row.how.startswith("90"))
    assert len(rows) == 3 * len(study.classes)


def test_scores_of_another_model_are_not_shown(make_outcome, tmp_path, random_state, study):
    folder = tmp_path / "kept"
    append_round(folder, random_state(1), study)
    assert figures.class_curves(make_outcome(), last_scores.load(folder)) == []


@pytest.fixture
def kept(tmp_path, random_state, study):
    """The scores that the closing round leaves."""
    folder = tmp_path / "kept"
    for number in range(1, 5):
        append_round(folder, random_state(number), study)
    return last_scores.load(folder)


def test_every_class_has_a_roc_and_a_precision_curve_with_a_line_for_each_site(make_outcome, kept, study):
    charts = site_curves.site_curves(make_outcome(), kept)
    assert [one.title for one in charts] == [
        f"{what} of {name}" for name in study.classes for what in ("ROC", "Precision over recall")
    ]
    names = [line.name for line in charts[0].lines]
    assert names == ["north", "south", "unseen (only scores)", "west", "pooled", "by chance"]
    assert "AUROC: north 0." in charts[0].description


def test_a_site_without_images_of_a_class_has_no_line_for_it(make_outcome, kept):
    """North's histogram of the first class loses its positives."""
    scored = kept.models[-1]
    histogram_C2B = scored.by_site["north"].of(len(scored.score.confusion_CC))
    histogram_C2B[0, 1] = 0
    places = histogram_C2B.ravel().nonzero()[0]
    fewer = last_scores.SiteHistograms(
        places=tuple(places.tolist()), counts=tuple(histogram_C2B.ravel()[places].tolist())
    )
    changed = scored.model_copy(update={"by_site": scored.by_site | {"north": fewer}})
    charts = site_curves.site_curves(make_outcome(), last_scores.LastScores(models=(changed,)))
    assert "north" not in [line.name for line in charts[0].lines]
    assert "north" in [line.name for line in charts[2].lines]


def test_a_record_of_an_earlier_version_has_no_curves_by_site(make_outcome, kept):
    scored = kept.models[-1].model_copy(update={"by_site": {}})
    assert site_curves.site_curves(make_outcome(), last_scores.LastScores(models=(scored,))) == []
