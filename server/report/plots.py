"""Pictures of reports: curves over the rounds, the confusion matrix, and comparisons of runs.

Colours are those of Okabe and Ito (2008), their yellow darkened for a white page: they
differ for any colour vision. Every site has its own marker as well, so that a black-and-white
print still reads.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.metrics import Figures
from common.plotting import matplotlib_in, png
from server.storage.history import ScoredModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SYNTHETIC = "synthetic images: the figures say nothing about medicine"

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_MAX_LETTERS = 22
_MAX_ANNOTATED = 20
"""Classes beyond which counts in the cells would be too small to read."""


def curves(
    models: Sequence[ScoredModel], evaluate: Sequence[str], scratch: Path, *, synthetic: bool
) -> bytes:
    """Balanced accuracy and loss over the rounds, per site and pooled, as PNG.

    Sites in `evaluate` never train and are dashed. `scratch` is where matplotlib may leave its
    font cache for the moment.
    """
    with matplotlib_in(scratch):
        from matplotlib.figure import Figure

        picture = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
        left, right = picture.subplots(1, 2)
        _curve(left, models, evaluate, lambda f: f.balanced_accuracy, "balanced accuracy")
        left.set_ylim(0, 1.02)  # a little air, or markers at 1 are cut
        _curve(right, models, evaluate, lambda f: f.loss, "loss (cross-entropy, nats per image)")
        right.set_ylim(bottom=0)
        handles, labels = left.get_legend_handles_labels()
        if handles:
            picture.legend(handles, labels, loc="outside right upper", frameon=False)
        side = models[-1].side if models else "validation"
        _banner(picture, f"The global model on each site's {side} images", synthetic=synthetic)
        return png(picture)


def confusion(model: ScoredModel, classes: Sequence[str], scratch: Path, *, synthetic: bool) -> bytes:
    """The confusion matrix as PNG: colour is the share of the true class, numbers are images."""
    with matplotlib_in(scratch):
        from matplotlib.figure import Figure

        num_classes, scored = len(classes), model.pooled
        side = min(16.0, max(5.2, 2.6 + 0.62 * num_classes))
        picture = Figure(figsize=(side + 0.9, side), dpi=120, layout="constrained")
        axes = picture.subplots()
        shares = [[count / max(1, sum(row)) for count in row] for row in scored.confusion_CC]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        picture.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
        names = [name if len(name) <= _MAX_LETTERS else f"{name[: _MAX_LETTERS - 1]}…" for name in classes]
        axes.set_xticks(range(num_classes), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), names)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        for row, counts in enumerate(scored.confusion_CC if num_classes <= _MAX_ANNOTATED else ()):
            for column, count in enumerate(counts):
                colour = "white" if shares[row][column] > 0.55 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
        num_images = scored.figures.num_images
        _banner(
            picture,
            f"The model after round {model.after_round} on {num_images} {model.side} images, pooled",
            synthetic=synthetic,
        )
        return png(picture)


def comparison(
    curves_by_run: Mapping[str, Sequence[tuple[int, float]]],
    scratch: Path,
    *,
    synthetic: bool,
    same_images: bool = True,
) -> bytes:
    """Pooled balanced accuracy over the rounds, a line per run, as PNG.

    `same_images`: every run was tested on the same images, as the title then says.
    """
    with matplotlib_in(scratch):
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        picture = Figure(figsize=(9, 4.8), dpi=120, layout="constrained")
        axes = picture.subplots()
        for place, (label, points) in enumerate(curves_by_run.items()):
            _line(
                axes,
                points,
                label=label,
                colour=_COLOURS[place % len(_COLOURS)],
                marker=_MARKERS[place % len(_MARKERS)],
                dashed=place >= len(_COLOURS),
            )
        axes.set_xlabel("model after round")
        axes.set_ylabel("balanced accuracy, pooled")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if any(curves_by_run.values()):  # none where every run failed before its first score
            picture.legend(loc="outside right upper", frameon=False)
        title = "Runs compared on validation images; tested on the same images"
        if not same_images:
            title = "Runs compared; NOT all tested on the same images, see the table"
        _banner(picture, title, synthetic=synthetic)
        return png(picture)


def bars(lengths: Mapping[str, tuple[float, float]], label: str, title: str, scratch: Path) -> bytes:
    """A bar a model, as PNG: its length, and half of its interval, 0 for none. NaN is a bar of no length."""
    with matplotlib_in(scratch):
        from matplotlib.figure import Figure

        picture = Figure(figsize=(8, 1.2 + 0.28 * max(1, len(lengths))), dpi=120, layout="constrained")
        axes = picture.subplots()
        places = range(len(lengths))
        means = [0.0 if math.isnan(mean) else mean for mean, _ in lengths.values()]
        axes.barh(
            places, means, xerr=[half for _, half in lengths.values()], color=_COLOURS[0], height=0.7,
            error_kw={"elinewidth": 1.2, "capsize": 2},
        )  # fmt: skip
        axes.set_yticks(places, lengths)
        axes.invert_yaxis()  # the first one above
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        _banner(picture, title, synthetic=False)
        return png(picture)


def _curve(
    axes: "Axes",
    models: Sequence[ScoredModel],
    evaluate: Sequence[str],
    read: Callable[[Figures], float],
    title: str,
) -> None:
    from matplotlib.ticker import MaxNLocator

    sites = sorted({site for model in models for site in model.sites})
    for place, site in enumerate(sites):
        _line(
            axes,
            [(m.after_round, read(m.sites[site].figures)) for m in models if site in m.sites],
            label=f"{site} (only scores)" if site in evaluate else site,
            colour=_COLOURS[place % len(_COLOURS)],
            marker=_MARKERS[place % len(_MARKERS)],
            dashed=site in evaluate,
        )
    if len(sites) > 1:
        # Only rounds in which every site scored: a mean over fewer images is another figure.
        whole = [model for model in models if model.sites.keys() == models[-1].sites.keys()]
        points = [(model.after_round, read(model.pooled.figures)) for model in whole]
        _line(axes, points, label="pooled", colour="black", marker="", dashed=False)
    axes.set_xlabel("model after round")
    axes.set_ylabel(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _line(
    axes: "Axes", points: Sequence[tuple[int, float]], *, label: str, colour: str, marker: str, dashed: bool
) -> None:
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if not points:
        return
    pooled = not marker
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        label=label,
        color=colour,
        marker=marker or "o",
        markersize=5 if len(points) <= 40 else 0,
        linewidth=2.6 if pooled else 1.4,
        linestyle="--" if dashed else "-",
        zorder=3 if pooled else 2,
    )


def _banner(picture: "Figure", title: str, *, synthetic: bool) -> None:
    if synthetic:
        picture.suptitle(f"{title}\n{SYNTHETIC}", fontsize=11, color="#B00020", fontweight="bold")
    else:
        picture.suptitle(title, fontsize=11)
