"""The report's section on intervals over patients, and its forest plots."""

import numpy as np
import pytest

from common.metrics.replicates import NUM_REPLICATES
from server.report import intervals_table
from server.report.html import figures
from server.storage.intervals import Figure, Intervals, SiteFigures


def figure(value: float, size: float = 0.05) -> Figure:
    return Figure(
        value=value, deviations=tuple(np.tile([size, -size], NUM_REPLICATES // 2).tolist()), num_free=99
    )


def on_record(*sites: str, without: dict[str, int] | None = None) -> Intervals:
    values = {name: figure(0.5) for name in intervals_table.TITLES} | {"auroc_macro": figure(1.0, 0.0)}
    return Intervals(
        sites={site: SiteFigures(num_patients=50, test_set="0" * 16, figures=values) for site in sites},
        without=without or {},
        pooled=values,
    )


def test_an_interval_by_hand():
    # log odds of 1/2 are 0; half is t(99) = 1.9842 times 0.05 / (0.5 * 0.5) = 0.39684; 1 / (1 + e^0.39684) = 0.40207
    assert intervals_table.with_interval(figure(0.5)) == "50.0 (40.2 to 59.8)"
    assert intervals_table.with_interval(figure(1.0, 0.0)) == "100.0 (-)"
    assert intervals_table.with_interval(None) == "-"


def test_every_site_and_all_of_them_have_intervals(make_outcome):
    outcome = make_outcome()
    sites = list(outcome.final.sites)
    (text,) = intervals_table.section(make_outcome(intervals=on_record(*sites)))
    for site in sites:
        assert f"| {site}" in text
    assert f"| **pooled** | {50 * len(sites)} | 50.0 (40.2 to 59.8) |" in text
    assert "Sent no sums" not in text


def test_a_site_without_sums_is_named(make_outcome):
    first, second, *rest = make_outcome().final.sites
    found = on_record(first, without={second: 12, **dict.fromkeys(rest, 1)})
    (text,) = intervals_table.section(make_outcome(intervals=found))
    assert f"Sent no sums over patients: {second} (12 images)" in text
    assert "| **pooled** | - |" in text


@pytest.mark.parametrize("found", [None, Intervals()])
def test_without_sums_there_is_no_section(make_outcome, found):
    assert intervals_table.section(make_outcome(intervals=found)) == []
    titles = [forest.title for forest in figures.forests(make_outcome(intervals=found))]
    assert not any("over patients" in title for title in titles)


def test_a_study_that_ended_before_its_test_has_no_section(make_outcome):
    assert intervals_table.section(make_outcome(last=2, intervals=on_record("north"))) == []


def test_forest_plots_have_the_sites_that_sent_sums(make_outcome):
    first, *_ = make_outcome().final.sites
    forests = figures.forests(make_outcome(intervals=on_record(first)))
    (balanced,) = [forest for forest in forests if forest.title == "Balanced accuracy, over patients"]
    one, pooled = balanced.rows
    assert (one.name, pooled.is_pooled) == (first, True)
    assert (one.value, one.low, one.high) == pytest.approx((50, 40.2, 59.8), abs=0.05)
    (auroc,) = [forest for forest in forests if forest.title == "AUROC, over patients"]
    assert not auroc.rows[0].is_there  # nothing varies
