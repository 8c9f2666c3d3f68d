"""Charts of the page: what is drawn where, as numbers for the template.

A chart is 420 x 300 units. Colours are named by class, so that the page's style can choose them for a light and for a
dark screen; a dash pattern tells lines apart where colours do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 42
"""Room beside the plot, for ticks and labels."""
NUM_COLOURS, NUM_DASHES = 7, 4
MOST_SERIES = NUM_COLOURS * NUM_DASHES // 2
"""Lines in one chart that an eye can still tell apart."""


@dataclass(frozen=True)
class Series:
    """One line to draw: finite points in the data's own units."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str
    """Class of the line: `c0` to `c6` with `d0` to `d3`, `pooled`, `faint` or `ideal`."""
    markers: bool = False


@dataclass(frozen=True)
class Line:
    """One line as it is drawn."""

    name: str
    kind: str
    path: str
    """The `d` of an SVG path."""
    markers: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Tick:
    """A mark at an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Everything that the template needs for one chart."""

    title: str
    description: str
    """For a reader who does not see the chart."""
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    note: str = ""


def kind_of(place: int) -> str:
    """The class of the line at this place of the legend."""
    return f"c{place % NUM_COLOURS} d{place // NUM_COLOURS % NUM_DASHES}"


def chart(
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    whole_x: bool = False,
    note: str = "",
) -> Chart:
    """A chart of these lines. `whole_x`: ticks of the x axis are whole numbers only, such as rounds."""

    def at_x(x: float) -> float:
        return _between(x, x_range, LEFT, WIDTH - RIGHT)

    def at_y(y: float) -> float:
        return _between(y, y_range, HEIGHT - BOTTOM, TOP)

    lines = []
    for one in series:
        points = [(at_x(x), at_y(y)) for x, y in one.points if math.isfinite(x) and math.isfinite(y)]
        if points:
            path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            markers = tuple((round(x, 1), round(y, 1)) for x, y in points) if one.markers else ()
            lines.append(Line(one.name, one.kind, path, markers))
    return Chart(
        title,
        description,
        x_label,
        y_label,
        tuple(Tick(round(at_x(x), 1), _label(x)) for x in ticks(*x_range, whole=whole_x)),
        tuple(Tick(round(at_y(y), 1), _label(y)) for y in ticks(*y_range)),
        tuple(lines),
        note,
    )


def ticks(low: float, high: float, *, whole: bool = False, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten, at most `most` of them."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    factor = next(f for f in (1, 2, 5, 10, 20) if span / (f * step) <= most - 1)
    step = max(factor * step, 1.0) if whole else factor * step
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def _between(value: float, of: tuple[float, float], start: float, end: float) -> float:
    low, high = of
    share = (value - low) / (high - low) if high > low else 0.5
    return start + min(max(share, 0.0), 1.0) * (end - start)


def _label(value: float) -> str:
    return f"{value:.6g}"
