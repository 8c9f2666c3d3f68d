"""The results of an experiment: a row a model, mean and interval over the seeds; Markdown, CSV, LaTeX, a picture."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from common.files import write_atomically
from common.metrics import Figures
from common.metrics.intervals import student_t
from server.heads import record as heads
from server.paper.experiment import Experiment, Size
from server.report import differences, plots
from server.report.comparison_row import Row
from server.report.text import counted, escaped, listed, markdown_table
from server.storage.history import Scored

COLUMNS: Mapping[str, Callable[[Figures], float]] = {
    "ACC": lambda f: f.accuracy,
    "BACC": lambda f: f.balanced_accuracy,
    "PRE": lambda f: f.precision_weighted,
    "REC": lambda f: f.recall_weighted,
    "F1": lambda f: f.f1_weighted,
    "AUC": lambda f: f.auroc_macro,
    "AVG of five": lambda f: f.avg_acc_bacc_pre_rec_f1,
    "AVG of six": lambda f: f.avg_acc_bacc_pre_rec_f1_auroc,
}
"""By what the paper calls them, in percent. Its AVG has two readings: without and with the AUC."""

TABLE = "results.md"

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantiles of Student's t at 97.5 % by degrees of freedom, from 1."""


@dataclass(frozen=True)
class Estimate:
    """Mean of several seeds, and half of its 95 % interval (Student's t); NaN for one seed alone."""

    mean: float
    half: float
    over_patients: bool = False
    """Whether the interval is over test patients, too."""

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.1f}" if math.isnan(self.half) else f"{self.mean:.1f} ± {self.half:.1f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Of at least one value."""
    mean = statistics.fmean(values)
    if len(values) == 1 or math.isnan(mean):
        return Estimate(mean, math.nan)
    return Estimate(mean, _students_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)))


def _students_t(freedom: int) -> float:
    """Quantile of Student's t at 97.5 %; beyond the table by its expansion around the normal's.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def over_patients(runs: differences.BySeed, figure: str, site: str | None) -> Estimate | None:
    """Mean of the seeds in percent, and half of its interval over patients and seeds; None without sums."""
    found = differences.of_variant(runs, figure, site)
    if found is None or not found.deviation > 0:
        return None
    half = student_t(0.975, found.num_free) * found.deviation
    return Estimate(100 * found.value, 100 * half, over_patients=True)


_NAMES: Mapping[str, str] = {
    "ACC": "accuracy",
    "BACC": "balanced_accuracy",
    "PRE": "precision_weighted",
    "REC": "recall_weighted",
    "F1": "f1_weighted",
    "AUC": "auroc_macro",
    "AVG of five": "avg_acc_bacc_pre_rec_f1",
    "AVG of six": "avg_acc_bacc_pre_rec_f1_auroc",
}
"""Names of the figures by column."""


@dataclass(frozen=True)
class Line:
    """One model: what all its seeds gave."""

    name: str
    seeds: tuple[int, ...]
    """That finished."""
    figures: Mapping[str, Estimate]
    """In percent, by column."""
    known: str
    """What the paper says of it."""
    remark: str
    """Why seeds are missing, or what the model started from; empty without a remark."""


def lines(experiment: Experiment, rows: Sequence[Row], from_random: Collection[str]) -> list[Line]:
    """One line a model, in the order in which they were run; `from_random` names those without weights from a file."""
    made, resampled = [], differences.on_record(rows)
    for name in dict.fromkeys(row.variant for row in rows):
        mine = [row for row in rows if row.variant == name]
        scored = {row.seed: found for row in mine if (found := _tested(experiment, row)) is not None}
        remarks = [f"seed {row.seed}: {row.failure or 'no scores'}" for row in mine if row.seed not in scored]
        if name in from_random:
            remarks.append("started from random weights")
        made.append(
            Line(
                name,
                tuple(scored),
                {
                    title: over_patients(resampled.get(name, {}), _NAMES[title], experiment.tested_on)
                    or estimate([100 * read(found) for found in scored.values()])
                    for title, read in COLUMNS.items()
                }
                if scored
                else {},
                "; ".join(known.figure for known in experiment.known if fnmatchcase(name, known.rows)),
                "; ".join(remarks),
            )
        )
    return made


def write(
    experiment: Experiment, size: Size, rows: Sequence[Row], from_random: Collection[str], folder: Path
) -> None:
    """Write results.md, .csv, .tex and .png into `folder`."""
    made = lines(experiment, rows, from_random)
    intro = [f"# {experiment.title}", ""]
    if size == "small":
        intro += [f"**Smaller than in the paper.** {experiment.small.reduced}", ""]
    tested = experiment.tested_on or "all sites together"
    intro += [
        *_test_images(experiment, rows),
        f"Test images of {tested}, scored once, on the chosen weights. Figures are percent: mean of the seeds ± half "
        "of the 95 % interval (Student's t), over test patients and, with two seeds or more, over seeds: their "
        "variances are added. Where no site sent sums over patients, it is over seeds alone, and one seed has none. "
        "PRE, REC and F1 are weighted by class size, "
        "AUC is the mean of one against the rest. The paper does not say what its AVG averages: both readings are "
        "given.",
        "",
    ]
    table = [
        [escaped(line.name), str(len(line.seeds)), *(str(line.figures.get(title, "-")) for title in COLUMNS),
         escaped(line.known), escaped(line.remark)]
        for line in made
    ]  # fmt: skip
    columns = ["model", "seeds", *COLUMNS, "the paper", "remark"]
    parts = [*intro, markdown_table(columns, table, right=0), *_heads(rows)]
    write_atomically(folder / TABLE, ("\n".join(parts) + "\n").encode())
    write_atomically(folder / "results.csv", _csv(made))
    write_atomically(folder / "results.tex", _latex(experiment, made))
    picture = plots.bars(
        {line.name: _bar(line) for line in made if line.figures},
        "AVG of five, percent",
        experiment.title,
        folder,
    )
    write_atomically(folder / "results.png", picture)


def _test_images(experiment: Experiment, rows: Sequence[Row]) -> list[str]:
    """How many test images of each class the figures are of, and the classes without any, as paragraphs."""
    classes = experiment.grid["study"]["classes"]
    counts_by_row = dict[tuple[int, ...], list[str]]()
    for row in rows:
        if (scored := _scored(experiment, row)) is not None:
            left_out = scored.left_out_C or (0,) * len(classes)
            counts = tuple(
                sum(of_class) + more for of_class, more in zip(scored.confusion_CC, left_out, strict=True)
            )
            counts_by_row.setdefault(counts, []).append(f"{row.variant}, seed {row.seed}")
    parts = []
    for counts, names in counts_by_row.items():
        of_which = f" ({'; '.join(names)})" if len(counts_by_row) > 1 else ""
        each = ", ".join(f"{name} {number}" for name, number in zip(classes, counts, strict=True))
        parts += [escaped(f"{counted(sum(counts), 'test image')}{of_which}: {each}."), ""]
        if absent := [escaped(name) for name, number in zip(classes, counts, strict=True) if not number]:
            without = "it" if len(absent) == 1 else "them"
            parts += [
                f"**No test image of {listed(absent)}: every mean over the classes is without {without}.**",
                "",
            ]
    return parts


def _tested(experiment: Experiment, row: Row) -> Figures | None:
    """The chosen weights on the test images that count; None for a run that failed or lacks some of them."""
    scored = _scored(experiment, row)
    return None if scored is None else scored.figures


def _scored(experiment: Experiment, row: Row) -> Scored | None:
    """The same with the counts."""
    tested = row.rounds[-1].test if row.rounds else None
    if row.failure is not None or tested is None:
        return None
    return tested.pooled if experiment.tested_on is None else tested.sites.get(experiment.tested_on)


def _bar(line: Line) -> tuple[float, float]:
    figure = line.figures["AVG of five"]
    return figure.mean, 0.0 if math.isnan(figure.half) else figure.half


def _csv(made: Sequence[Line]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    ends = [f"{title}{end}" for title in COLUMNS for end in ("", " half interval")]
    writer.writerow(["model", "seeds", *ends, "the paper", "remark"])
    for line in made:
        numbers = [
            "" if math.isnan(value) else f"{value:.3f}"
            for title in COLUMNS
            for figure in [line.figures.get(title, Estimate(math.nan, math.nan))]
            for value in (figure.mean, figure.half)
        ]
        writer.writerow([line.name, " ".join(map(str, line.seeds)), *numbers, line.known, line.remark])
    return text.getvalue().encode()


def _latex(experiment: Experiment, made: Sequence[Line]) -> bytes:
    """A table for the package booktabs."""
    body = [
        " & ".join(
            [
                _tex(line.name),
                *(_tex(str(line.figures.get(title, "-"))) for title in COLUMNS),
                _tex(line.known),
            ]
        )
        + r" \\"
        for line in made
    ]
    head = " & ".join(["Model", *COLUMNS, "Paper"]) + r" \\"
    text = [
        f"% {experiment.title}; needs \\usepackage{{booktabs}}",
        rf"\begin{{tabular}}{{l{'r' * len(COLUMNS)}l}}",
        r"\toprule", head, r"\midrule", *body, r"\bottomrule",
        r"\end{tabular}",
    ]  # fmt: skip
    return ("\n".join(text) + "\n").encode()


def _tex(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("±", r"$\pm$")


_HEAD_FIGURES = {
    "ACC": "accuracy",
    "BACC": "balanced_accuracy",
    "PRE": "precision_weighted",
    "REC": "recall_weighted",
    "F1": "f1_weighted",
    "AUC": "auroc",
    "AVG of five": "avg_acc_bacc_pre_rec_f1",
    "AVG of six": "avg_acc_bacc_pre_rec_f1_auroc",
}
"""Columns of the table of heads, and the field of a cell that each shows."""


def _heads(rows: Sequence[Row]) -> list[str]:
    """Heads on the networks' features, by model, head and site; nothing if no study fits heads."""
    cells: dict[tuple[str, str, str], list[heads.Cell]] = {}
    for row in rows:
        table = heads.read(row.run_dir) if row.run_dir.exists() else None
        for site, by_title in (table.cells if table else {}).items():
            for title, cell in by_title.items():
                cells.setdefault((row.variant, title, site), []).append(cell)
    if not cells:
        return []
    body = [
        [escaped(model), escaped(title), escaped(site), str(found[0].num_images),
         *(_mean(found, name) for name in _HEAD_FIGURES.values()), _gain(found), _mcnemar(found)]
        for (model, title, site), found in cells.items()
    ]  # fmt: skip
    columns = [
        "model", "head", "site", "images", *_HEAD_FIGURES, "gain in BACC over softmax, points", "McNemar's p",
    ]  # fmt: skip
    return [
        "",
        "## Heads on the features",
        "",
        "Percent, mean of the seeds. PRE, REC and F1 are weighted by class size. AVG is of the five figures without "
        "the AUC, or of six with it. The gain has the 95 % interval over the patients or lesions of the images, of the "
        "first seed; so is McNemar's exact test.",
        "",
        markdown_table(columns, body, right=3),
    ]


def _mean(cells: Sequence[heads.Cell], name: str) -> str:
    values = [100 * value for cell in cells if (value := getattr(cell, name)) is not None]
    return f"{statistics.fmean(values):.1f}" if values else "-"


def _mcnemar(cells: Sequence[heads.Cell]) -> str:
    value = cells[0].mcnemar_p
    return "-" if value is None else f"{value:.2g}"


def _gain(cells: Sequence[heads.Cell]) -> str:
    first = cells[0]
    if first.gain is None:
        return "-" if not first.problem else first.problem
    if first.gain_low is None or first.gain_high is None:
        return _mean(cells, "gain")
    return f"{_mean(cells, 'gain')} [{100 * first.gain_low:.1f}, {100 * first.gain_high:.1f}]"
