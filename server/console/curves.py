"""Curves of a study's rounds as paths of SVG, for the console's pages.

A figure is a few lines over the rounds. A gap is left where a round has no value.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.storage.history import RoundRecord, Scored, curves

WIDTH, HEIGHT = 420, 230
"""Units of the drawing; the page scales it."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 26
_COLOURS = 7
_TICKS = 5

Points = Sequence[tuple[int, float]]
"""Round and value."""


@dataclass(frozen=True)
class Line:
    """One line of a figure."""

    name: str
    colour: str
    """Class of the style sheet."""
    path: str
    dots: tuple[tuple[float, float], ...]
    last: float
    """Its newest value."""


@dataclass(frozen=True)
class Chart:
    """One figure."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


def of_study(rounds: Sequence[RoundRecord]) -> list[Chart]:
    """The figures that the rounds have values for."""
    validation, rows = curves(rounds, "validation"), [row for record in rounds for row in record.sites]
    sites = sorted({row.site for row in rows})

    def scored(value: Callable[[Scored], float]) -> dict[str, Points]:
        lines: dict[str, Points] = {"all": [(model.after_round, value(model.pooled)) for model in validation]}
        for site in sites:
            lines[site] = [(m.after_round, value(m.sites[site])) for m in validation if site in m.sites]
        return lines

    losses: dict[str, Points] = {
        site: [
            (record.round, row.train_loss)
            for record in rounds
            for row in record.sites
            if row.site == site and row.train_loss is not None
        ]
        for site in sites
    }
    answers: dict[str, Points] = {
        site: [
            (record.round, row.answered_after_s)
            for record in rounds
            for row in record.sites
            if row.site == site and row.outcome == "ok"
        ]
        for site in sites
    }
    drawn = [
        chart("Balanced accuracy", scored(lambda score: score.figures.balanced_accuracy), low=0.0, high=1.0),
        chart("AUROC", scored(lambda score: score.figures.auroc_macro), low=0.0, high=1.0),
        chart("Loss on scored images", scored(lambda score: score.figures.loss), low=0.0),
        chart("Training loss", {"all": [], **losses}, low=0.0),
        chart("Seconds until a site answered", {"all": [], **answers}, low=0.0),
    ]
    return [one for one in drawn if one is not None]


def chart(
    title: str, lines: dict[str, Points], *, low: float | None = None, high: float | None = None
) -> Chart | None:
    """A figure of these lines, by name; None without a value. `low` and `high` are shown whatever the values."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    values = [y for points in finite.values() for _, y in points]
    if not values:
        return None
    rounds = [x for points in finite.values() for x, _ in points]
    first, last = min(rounds), max(max(rounds), min(rounds) + 1)
    low = min(values) if low is None else min(low, *values)
    high = max(values) if high is None else max(high, *values)
    high = high if high > low else low + 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) * (WIDTH - _LEFT - _RIGHT)
        up = (y - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across, 1), round(HEIGHT - _BOTTOM - up, 1)

    drawn = [
        Line(
            name,
            "c0" if name == "all" else f"c{1 + (number - 1) % _COLOURS}",
            _path([place(*point) for point in finite[name]], [x for x, _ in finite[name]]),
            tuple(place(*point) for point in finite[name]) if len(finite[name]) <= _DOTTED else (),
            finite[name][-1][1],
        )
        for number, name in enumerate(lines)
        if finite[name]
    ]
    steps = [low + (high - low) * number / (_TICKS - 1) for number in range(_TICKS)]
    across = range(
        first, last + 1, max(1, math.ceil((last - first) / (_TICKS + 1)))
    )  # even steps of whole rounds
    return Chart(
        title,
        tuple(drawn),
        tuple((place(x, low)[0], str(x)) for x in across),
        tuple((place(first, y)[1], f"{y:.3g}") for y in steps),
    )


_DOTTED = 30
"""Most points that are drawn as dots, too: a single round has no line."""


def _path(places: Sequence[tuple[float, float]], rounds: Sequence[int]) -> str:
    """Straight lines from round to round; where one is missing, the line begins again."""
    parts = []
    for number, (x, y) in enumerate(places):
        follows = number > 0 and rounds[number] - rounds[number - 1] == 1
        parts.append(f"{'L' if follows else 'M'}{x:g} {y:g}")
    return "".join(parts)
