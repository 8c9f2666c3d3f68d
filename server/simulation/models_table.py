"""The table of sites and models: each model's figures on each site's test images, and differences with intervals.

A difference is of the balanced accuracies of two models on the same test images. If the sites sent sums over their
patients for both, it is tested on these. Otherwise there are only counts for each model, and the two are taken as
independent: where both err on the same images, the interval is wider than it had to be. Images are then taken as
independent, too: where a patient has several, it is too narrow.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from common.files import write_atomically
from common.metrics import Figures
from server.report import differences, missing_sums
from server.report.comparison_row import Row
from server.report.text import escaped, markdown_table, percent
from server.storage.history import Scored

FEDERATED, POOLED = "federated", "pooled"
ALL_SITES = "all sites"
_FIGURES: Mapping[str, Callable[[Figures], float]] = {
    "balanced accuracy": lambda figures: figures.balanced_accuracy,
    "F1, weighted": lambda figures: figures.f1_weighted,
    "AUROC": lambda figures: figures.auroc_macro,
    "accuracy": lambda figures: figures.accuracy,
    "AVG (ACC, BACC, PRE, REC, F1)": lambda figures: figures.avg_acc_bacc_pre_rec_f1,
    "AVG (the same and AUROC)": lambda figures: figures.avg_acc_bacc_pre_rec_f1_auroc,
}
_SHOWN = ("balanced accuracy", "F1, weighted", "AUROC")
"""Tables of the Markdown file; the CSV file has all figures."""


@dataclass(frozen=True)
class Table:
    """What was written."""

    path: Path
    """The Markdown file."""
    failures: Mapping[str, str]
    """Why a model has no figures, by model."""
    lacking: Mapping[str, str]
    """Why a model's figures are incomplete, by model."""


@dataclass(frozen=True)
class Difference:
    """One model's balanced accuracy minus another's, as shares; NaN without images."""

    value: float
    interval: tuple[float, float]
    """95 %."""


def difference(first: Scored, second: Scored, confidence: float = 0.95) -> Difference:
    """Balanced accuracy of `first` minus that of `second`, which were scored on the same images.

    The variance of each recall is that of Agresti and Caffo 2000 (doi:10.1080/00031305.2000.10474560): with one right
    and one wrong image more, so that a recall of 0 or 1 is not taken as certain.
    """
    variance, values = 0.0, []
    for scored in (first, second):
        confusion_CC = np.asarray(scored.confusion_CC, np.float64)
        images_C, right_C = confusion_CC.sum(axis=1), np.diag(confusion_CC)
        has_C = images_C > 0
        if not has_C.any():
            return Difference(math.nan, (math.nan, math.nan))
        share_C = (right_C[has_C] + 1) / (images_C[has_C] + 2)
        variance += float(np.sum(share_C * (1 - share_C) / (images_C[has_C] + 2))) / int(has_C.sum()) ** 2
        values.append(float(np.mean(right_C[has_C] / images_C[has_C])))
    middle = values[0] - values[1]
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance)
    return Difference(middle, (middle - half, middle + half))


def write(
    file: str,
    title: str,
    folder: Path,
    rows: Sequence[Row],
    pairs: Sequence[tuple[str, str, tuple[str, ...]]],
    *,
    synthetic: bool,
) -> Table:
    """Write `file`.md and .csv into `folder`.

    `pairs` are models whose difference is of interest: the first minus the second, at the named sites, or at all sites
    together if none is named.
    """
    scored = {row.variant: _scored(row) for row in rows}
    sites = sorted({site for model in scored.values() for site in model if site != ALL_SITES})
    columns = [*sites, ALL_SITES]
    failures = {row.variant: row.failure or "no scores" for row in rows if not scored[row.variant]}
    lacking = {row.variant: row.lacking for row in rows if row.lacking}
    parts = [f"# {title}"]
    if synthetic:
        parts.append("**SYNTHETIC images: the figures say nothing about medicine.**")
    parts.append(
        "Rows are models, columns the sites whose test images they were scored on, once, with the chosen weights. "
        "Percent. `-`: not scored, or too few classes for the figure."
    )
    parts += [
        f"## {figure.capitalize() if figure.islower() else figure}\n\n" + _table(scored, columns, figure)
        for figure in _SHOWN
    ]
    parts += _differences(scored, pairs, differences.on_record(rows), rows)
    parts += [f"**{escaped(model)} has no figures: {escaped(why)}.**" for model, why in failures.items()]
    parts += [f"**{escaped(model)} is incomplete: {escaped(why)}.**" for model, why in lacking.items()]
    write_atomically(folder / f"{file}.md", ("\n\n".join(parts) + "\n").encode())
    write_atomically(folder / f"{file}.csv", _csv(scored, columns).encode())
    return Table(folder / f"{file}.md", failures, lacking)


def _scored(row: Row) -> dict[str, Scored]:
    """The chosen model's scores by site and of all; empty for a run that failed."""
    tested = row.rounds[-1].test if row.rounds and row.failure is None else None
    return {} if tested is None else {**tested.sites, ALL_SITES: tested.pooled}


def _table(scored: Mapping[str, Mapping[str, Scored]], columns: Sequence[str], figure: str) -> str:
    head = ["model", *columns]
    images = ["*test images*"]
    for column in columns:
        numbers = {model[column].figures.num_images for model in scored.values() if column in model}
        images.append(", ".join(map(str, sorted(numbers))) or "-")
    lines = [
        [
            escaped(name),
            *(
                percent(_FIGURES[figure](model[column].figures)) if column in model else "-"
                for column in columns
            ),
        ]
        for name, model in scored.items()
    ]
    return markdown_table(head, [*lines, images])


def _differences(
    scored: Mapping[str, Mapping[str, Scored]],
    pairs: Sequence[tuple[str, str, tuple[str, ...]]],
    resampled: Mapping[str, differences.BySeed],
    rows: Sequence[Row],
) -> list[str]:
    lines, without = [], set[str]()
    for first, second, named in pairs:
        for site in named or (ALL_SITES,):
            one, other = scored.get(first, {}).get(site), scored.get(second, {}).get(site)
            if one is None or other is None:
                lines.append([f"{escaped(first)} - {escaped(second)}", escaped(site), "-", "-", "-", "-"])
                continue
            if (tested := _over_patients(resampled, first, second, site)) is not None:
                means = "the same patients" if tested.is_paired else "independent patients"
                cells = differences.cells(tested)
                lines.append([f"{escaped(first)} - {escaped(second)}", escaped(site), *cells, means])
                continue
            without |= {first, second}
            found = difference(one, other)
            low, high = found.interval
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
            lines.append(
                [
                    f"{escaped(first)} - {escaped(second)}",
                    escaped(site),
                    f"{100 * found.value:+.1f}",
                    interval,
                    "-",
                    "independent images",
                ]
            )
    if not lines:
        return []
    head = ["models", "test images of", "difference", "95 % interval", "p", "interval over"]
    return [
        "## Differences of balanced accuracy",
        markdown_table(head, lines),
        "Percentage points. *The same patients*: the difference itself is tested, from sums that the sites send over "
        "their patients. *Independent images*: a site sent none. Then the two models are taken as independent, which "
        "makes the interval too wide, and so are images of one patient, which makes it too narrow. Training again "
        "with another seed would differ as well: that is not in it.",
        *_why_independent([row for row in rows if row.variant in without]),
    ]


def _why_independent(rows: Sequence[Row]) -> list[str]:
    """Why sums over patients are missing, as a list; nothing if none is missing."""
    found = missing_sums.reasons(rows)
    return (
        ["Why images are taken as independent:", "\n".join(f"- {reason}" for reason in found)]
        if found
        else []
    )


def _over_patients(
    resampled: Mapping[str, differences.BySeed], first: str, second: str, site: str
) -> differences.Difference | None:
    """The difference from the sums over patients; None if a model has none."""
    if first not in resampled or second not in resampled:
        return None
    at = None if site == ALL_SITES else site
    return differences.difference(resampled[first], resampled[second], "balanced_accuracy", at)


def _csv(scored: Mapping[str, Mapping[str, Scored]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["model", "site", "images", *_FIGURES])
    for name, model in scored.items():
        for column in columns:
            if column in model:
                figures = model[column].figures
                shares = [f"{read(figures):.4f}" for read in _FIGURES.values()]
                writer.writerow([name, column, figures.num_images, *shares])
    return text.getvalue()
