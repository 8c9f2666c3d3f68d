"""The figures of the page, from the rounds on record and the counts of the last models."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.metrics import Figures
from common.metrics.pooling import interval
from common.metrics.thresholds import (
    Histogram,
    at_threshold,
    place_for_sensitivity,
    place_of,
    reliability,
    roc,
)
from server.report import intervals_table
from server.report.html.charts import MOST_SERIES, Chart, Series, chart, kind_of
from server.report.outcome import Outcome
from server.storage.history import Scored, ScoredModel
from server.storage.intervals import Figure
from server.storage.last_scores import LastScores, PooledScore

_SHARE = (0.0, 1.0)
_SENSITIVITIES = (0.9, 0.95)
"""Shares of a class that a threshold is to find on validation images."""
_FIXED = (0.5,)
MOST_CLASSES, MOST_SITES = 20, 30
"""Beyond them a matrix, or a matrix for each site, would be too small or too long to read."""


@dataclass(frozen=True)
class Interval:
    """A share with its 95 % interval, in percent; NaN without images."""

    name: str
    num_images: int
    value: float
    low: float
    high: float
    is_pooled: bool = False

    @property
    def is_there(self) -> bool:
        return self.num_images > 0 and math.isfinite(self.low)


@dataclass(frozen=True)
class Forest:
    """The same share of every site, one below the other."""

    title: str
    rows: tuple[Interval, ...]


@dataclass(frozen=True)
class Cell:
    """Images of one true class that one class was predicted for."""

    count: int
    shade: int
    """Share of the true class, in tenths."""


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix; rows are true classes."""

    name: str
    num_images: int
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class ThresholdRow:
    """Sensitivity and specificity of one class at one threshold."""

    class_name: str
    how: str
    """How the threshold was chosen."""
    threshold: float
    sensitivity: Interval
    specificity: Interval


def curves(outcome: Outcome) -> list[Chart]:
    """Balanced accuracy, AUROC and loss over the rounds; empty without a score."""
    models = outcome.curves
    if not models:
        return []
    wanted: list[tuple[str, Callable[[Figures], float], bool]] = [
        ("balanced accuracy", lambda f: f.balanced_accuracy, True),
        ("AUROC, mean over classes", lambda f: f.auroc_macro, True),
        ("loss (nats per image)", lambda f: f.loss, False),
    ]
    return [_curve(outcome, models, title, read, is_share) for title, read, is_share in wanted]


def _curve(
    outcome: Outcome,
    models: Sequence[ScoredModel],
    title: str,
    read: Callable[[Figures], float],
    is_share: bool,
) -> Chart:
    evaluate = outcome.study.sites.evaluate
    sites = sorted({site for model in models for site in model.sites})
    many = len(sites) > MOST_SERIES
    series = [
        Series(
            f"{site} (only scores)" if site in evaluate else site,
            [(m.after_round, read(m.sites[site].figures)) for m in models if site in m.sites],
            "faint" if many else kind_of(place),
            markers=len(models) <= 20 and not many,
        )
        for place, site in enumerate(sites)
    ]
    whole = [model for model in models if model.sites.keys() == models[-1].sites.keys()]
    pooled = [(model.after_round, read(model.pooled.figures)) for model in whole]
    if len(sites) > 1:
        series.append(Series("pooled", pooled, "pooled"))
    top = max((y for one in series for _, y in one.points if math.isfinite(y)), default=1.0)
    first, last = models[0].after_round, models[-1].after_round
    ends = [y for _, y in pooled if math.isfinite(y)]
    in_words = f" Pooled: {ends[0]:.3f} first, {ends[-1]:.3f} last." if ends else ""
    return chart(
        title.capitalize() if not title.startswith("AUROC") else title,
        f"{title} of the model after rounds {first} to {last}, {len(sites)} sites.{in_words}",
        series,
        x_label="model after round",
        y_label=title,
        x_range=(first, max(last, first + 1)),
        y_range=_SHARE if is_share else (0.0, top * 1.05 or 1.0),
        whole_x=True,
        note=f"{len(sites)} sites, each a thin line." if many else "",
    )


def forests(outcome: Outcome) -> list[Forest]:
    """Accuracy of every site, and the recall of each class at every site, with their intervals."""
    final = outcome.final
    if final is None:
        return []
    found = [Forest("Accuracy", tuple(_rows(outcome, final, _right)))]
    if len(outcome.study.classes) <= MOST_CLASSES:
        for place, name in enumerate(outcome.study.classes):
            rows = tuple(_rows(outcome, final, lambda scored, place=place: _of_class(scored, place)))  # type: ignore[misc]
            found.append(Forest(f"Recall of {name}", rows))
    return [*found, *_over_patients(outcome, final)]


def _over_patients(outcome: Outcome, final: ScoredModel) -> list[Forest]:
    """The figures whose intervals are over patients, of the sites that sent sums over theirs."""
    on_record = outcome.intervals
    if on_record is None or not on_record.sites or final.side != "test":
        return []
    evaluate, forests = outcome.study.sites.evaluate, []
    for name, title in intervals_table.TITLES.items():
        rows = [
            _over_patients_row(
                f"{site} (only scores)" if site in evaluate else site,
                scored,
                on_record.sites[site].figures.get(name),
            )
            for site, scored in final.sites.items()
            if site in on_record.sites
        ]
        rows.append(_over_patients_row("pooled", final.pooled, on_record.pooled.get(name), is_pooled=True))
        forests.append(Forest(f"{title[0].upper()}{title[1:]}, over patients", tuple(rows)))
    return forests


def _over_patients_row(
    name: str, scored: Scored, figure: Figure | None, *, is_pooled: bool = False
) -> Interval:
    low, high = (math.nan, math.nan) if figure is None else intervals_table.ends(figure)
    value = math.nan if figure is None else figure.value
    return Interval(name, scored.figures.num_images, 100 * value, 100 * low, 100 * high, is_pooled)


def _rows(outcome: Outcome, final: ScoredModel, read: Callable[[Scored], tuple[int, int]]) -> list[Interval]:
    evaluate = outcome.study.sites.evaluate
    rows = [
        share(f"{site} (only scores)" if site in evaluate else site, *read(scored))
        for site, scored in final.sites.items()
    ]
    return [*rows, share("pooled", *read(final.pooled), is_pooled=True)]


def _right(scored: Scored) -> tuple[int, int]:
    return sum(row[place] for place, row in enumerate(scored.confusion_CC)), scored.figures.num_images


def _of_class(scored: Scored, place: int) -> tuple[int, int]:
    return scored.confusion_CC[place][place], sum(scored.confusion_CC[place])


def share(name: str, right: int, images: int, *, is_pooled: bool = False) -> Interval:
    """`right` of `images` in percent, with Wilson's 95 % interval."""
    low, high = interval(right, images)
    value = right / images if images else math.nan
    return Interval(name, images, 100 * value, 100 * low, 100 * high, is_pooled)


def matrices(outcome: Outcome) -> list[Matrix]:
    """The pooled confusion matrix, then that of each site; empty if they would be too many or too large."""
    final, classes = outcome.final, outcome.study.classes
    if final is None or len(classes) > MOST_CLASSES:
        return []
    by_name = {"All sites": final.pooled}
    if 1 < len(final.sites) <= MOST_SITES:
        by_name |= dict(final.sites)
    return [
        Matrix(
            name,
            scored.figures.num_images,
            tuple(
                (of_class, tuple(Cell(n, round(10 * n / max(1, sum(counts)))) for n in counts))
                for of_class, counts in zip(classes, scored.confusion_CC, strict=True)
            ),
        )
        for name, scored in by_name.items()
    ]


def class_curves(outcome: Outcome, kept: LastScores) -> list[Chart]:
    """ROC and precision over recall for each class, and reliability, pooled; empty without the counts."""
    scored = final_score(outcome, kept)
    if scored is None:
        return []
    classes, histogram_C2B = outcome.study.classes, scored.score.histogram_C2B
    charts = []
    if len(classes) <= MOST_SERIES:
        named = list(zip(classes, histogram_C2B, strict=True))
        auroc_C = outcome.final.pooled.figures.auroc_C if outcome.final is not None else ()
        in_words = ", ".join(
            f"{n} {a:.3f}" for n, a in zip(classes, auroc_C, strict=False) if math.isfinite(a)
        )
        charts = [
            chart(
                "ROC, one class against all others",
                f"Sensitivity over 1 minus specificity. AUROC: {in_words}.",
                [Series(name, roc(h), kind_of(place)) for place, (name, h) in enumerate(named)]
                + [Series("by chance", [(0, 0), (1, 1)], "ideal")],
                x_label="1 - specificity",
                y_label="sensitivity",
                x_range=_SHARE,
                y_range=_SHARE,
            ),
            chart(
                "Precision over recall",
                "Precision at every recall, one class against all others.",
                [Series(name, precision(h), kind_of(place)) for place, (name, h) in enumerate(named)],
                x_label="recall",
                y_label="precision",
                x_range=_SHARE,
                y_range=_SHARE,
            ),
        ]
    return [*charts, _reliability(scored)]


def precision(histogram_2B: Histogram) -> list[tuple[float, float]]:
    """Precision by recall, at every threshold."""
    points = [at_threshold(histogram_2B, place) for place in range(histogram_2B.shape[1], -1, -1)]
    by_recall = [
        (one.sensitivity, one.found / called)
        for one in points
        if one.of_class and (called := one.found + one.of_others - one.right_no)
    ]
    return list(dict.fromkeys(by_recall))


def _reliability(scored: PooledScore) -> Chart:
    filled = [one for one in reliability(scored.score) if one is not None]
    in_words = "; ".join(
        f"{one.accuracy:.2f} at {one.confidence:.2f} ({one.num_images} images)" for one in filled
    )
    return chart(
        "Reliability of the predicted class",
        f"Share of right predictions by mean probability: {in_words}.",
        [
            Series("this model", [(one.confidence, one.accuracy) for one in filled], "c0 d0", markers=True),
            Series("perfectly calibrated", [(0, 0), (1, 1)], "ideal"),
        ],
        x_label="probability of the predicted class",
        y_label="share that is right",
        x_range=_SHARE,
        y_range=_SHARE,
        note="Below the line, the model is surer than it is right.",
    )


def thresholds(outcome: Outcome, kept: LastScores) -> list[ThresholdRow]:
    """Sensitivity and specificity on the final images: at 0.5, and at thresholds chosen on validation images."""
    scored, classes = final_score(outcome, kept), outcome.study.classes
    if scored is None or len(classes) > MOST_CLASSES:
        return []
    validation = kept.of("validation", scored.after_round) if scored.side == "test" else None
    rows = []
    for place, name in enumerate(classes):
        histogram_2B = scored.score.histogram_C2B[place]
        chosen = [(f"fixed at {value:g}", place_of(value)) for value in _FIXED]
        if validation is not None:
            for wanted in _SENSITIVITIES:
                edge = place_for_sensitivity(validation.score.histogram_C2B[place], wanted)
                if edge is not None:
                    chosen.append((f"{100 * wanted:g} % found in validation", edge))
        for how, edge in chosen:
            at = at_threshold(histogram_2B, edge)
            rows.append(
                ThresholdRow(
                    name,
                    how,
                    at.threshold,
                    share("sensitivity", at.found, at.of_class),
                    share("specificity", at.right_no, at.of_others),
                )
            )
    return rows


def final_score(outcome: Outcome, kept: LastScores) -> PooledScore | None:
    """The counts of the report's model, if they are kept and are those of the same images."""
    final = outcome.final
    scored = None if final is None else kept.of(final.side, final.after_round)
    if final is None or scored is None:
        return None
    same = scored.score.confusion_CC.tolist() == [list(row) for row in final.pooled.confusion_CC]
    return scored if same else None
