"""Figures of runs with intervals over patients and seeds, and the difference of two runs on the same patients.

A difference is tested itself: two intervals that overlap say little of runs on the same test images, whose errors go
together. Runs are paired if every site that sent sums had the same test images in both; otherwise they count as
independent, and the table says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.metrics import intervals as metrics
from common.metrics.intervals import Estimate, Resampled
from server.report.comparison_row import Row
from server.report.intervals_table import TITLES
from server.report.text import escaped, markdown_table, percent
from server.storage import intervals
from server.storage.intervals import Figure, Intervals

BySeed = Mapping[int, Intervals]
"""Intervals on record of one variant's runs."""


@dataclass(frozen=True)
class Difference:
    """One figure of one variant minus that of another, as shares."""

    estimate: Estimate
    is_paired: bool


def on_record(rows: Sequence[Row]) -> dict[str, BySeed]:
    """By variant and seed, the intervals of its runs that finished; a variant of which one lacks them is missing."""
    found: dict[str, dict[int, Intervals]] = {}
    for row in rows:
        if row.failure is None and row.rounds and row.rounds[-1].test is not None:
            found.setdefault(row.variant, {})[row.seed] = intervals.load(row.run_dir)
    return {name: runs for name, runs in found.items() if all(run.sites for run in runs.values())}


def of_variant(runs: BySeed, figure: str, site: str | None = None) -> Estimate | None:
    """Mean of the seeds, at one site or pooled; None where a run lacks the figure."""
    resampled = _resampled(runs, figure, site)
    return metrics.estimate(resampled) if resampled else None


def difference(first: BySeed, second: BySeed, figure: str, site: str | None = None) -> Difference | None:
    """`first` minus `second`; None where a run of either lacks the figure."""
    one, other = _resampled(first, figure, site), _resampled(second, figure, site)
    if not one or not other:
        return None
    is_paired = len({_tested(run, site) for run in (*first.values(), *second.values())}) == 1
    return Difference(metrics.difference(one, other, paired=is_paired), is_paired)


def of_runs(first: Path, second: Path, site: str | None = None) -> dict[str, Difference]:
    """By figure, the difference of two runs. Raises ConfigError for a run without sums over patients, StorageError."""
    runs = {path: intervals.load(path) for path in (first, second)}
    for path, run in runs.items():
        if not run.sites:
            raise ConfigError(
                f"{path} has no {intervals.FILE}: its test is not over, no site sent sums over its patients, or the "
                "study has `intervals: false`"
            )
        if site is not None and site not in run.sites:
            raise ConfigError(f"{path} has no sums of {site}; it has those of {', '.join(run.sites)}")
    found = {name: difference({0: runs[first]}, {0: runs[second]}, name, site) for name in TITLES}
    return {name: one for name, one in found.items() if one is not None}


def table(found: Mapping[str, Difference]) -> str:
    """Differences by figure as Markdown."""
    rows = [[TITLES[name], *cells(one)] for name, one in found.items()]
    return markdown_table(["figure", "difference", "95 % interval", "p"], rows)


def cells(found: Difference | None) -> list[str]:
    """The difference in percentage points, its interval and p."""
    if found is None:
        return ["-", "-", "-"]
    low, high = found.estimate.interval()
    between = "-" if low != low else f"{100 * low:+.1f} to {100 * high:+.1f}"
    p = found.estimate.p
    return [
        f"{100 * found.estimate.value:+.1f}",
        between,
        "-" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}",
    ]


def with_interval(found: Estimate | None) -> str:
    """A figure in percent with its interval; a dash without one."""
    if found is None:
        return "-"
    low, high = found.interval()
    return percent(found.value) + ("" if low != low else f" ({percent(low)} to {percent(high)})")


def sections(rows: Sequence[Row]) -> list[str]:
    """Sections of a grid's comparison: every variant with intervals, and each minus the first; empty without any."""
    found = on_record(rows)
    if not found:
        return []
    body = [
        [escaped(name), str(len(runs)), *(with_interval(of_variant(runs, figure)) for figure in TITLES)]
        for name, runs in found.items()
    ]
    parts = [
        "## Pooled figures with intervals",
        markdown_table(["variant", "seeds", *TITLES.values()], body),
        LEGEND,
    ]
    base, *others = found
    if others:
        compared = {
            name: {figure: difference(found[name], found[base], figure) for figure in _COMPARED}
            for name in others
        }
        lines = [
            [escaped(name), TITLES[figure], *cells(one)]
            for name, by_figure in compared.items()
            for figure, one in by_figure.items()
        ]
        apart = [
            escaped(name)
            for name, by_figure in compared.items()
            if any(one is not None and not one.is_paired for one in by_figure.values())
        ]
        parts += [
            f"## Differences from {escaped(base)}",
            markdown_table(["variant", "figure", "difference", "95 % interval", "p"], lines, right=3),
            DIFFERENCES,
        ]
        if apart:
            parts.append(f"Not on the same test images, so taken as independent: {', '.join(apart)}.")
    return parts


_COMPARED = ("balanced_accuracy", "f1_weighted", "auroc_macro", "avg_acc_bacc_pre_rec_f1")

LEGEND = (
    "Percent, mean of the seeds, with 95 % intervals over patients and, with two seeds or more, over seeds. The "
    "variance over patients of the seeds' mean and the variance of that mean over seeds are added; the second has a "
    "part of the first in it, so the interval is a little too wide. With one seed, training again is not in it."
)
DIFFERENCES = (
    "Percentage points. Each difference is of the same patients, and of the same seed where both have it; p is that of "
    "no difference, two-sided, for each line alone: among twenty lines without any difference one is below 0.05."
)


def _resampled(runs: BySeed, figure: str, site: str | None) -> dict[int, Resampled]:
    """By seed; empty if a run lacks the figure."""
    found: dict[int, Figure | None] = {}
    for seed, run in runs.items():
        here = run.pooled if site is None else run.sites[site].figures if site in run.sites else {}
        found[seed] = here.get(figure)
    there = {seed: one.resampled for seed, one in found.items() if one is not None}
    return there if len(there) == len(found) else {}


def _tested(run: Intervals, site: str | None) -> tuple[object, ...]:
    """What has to be equal for the same test images."""
    if site is not None:
        return (run.sites[site].test_set,)
    return (*((name, one.test_set) for name, one in run.sites.items()), *run.without.items())
