"""Images per site and class, as a table to print and as a picture.

A reader of a federation's figures needs to know first how its sites differ.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from client.data.manifest import Manifest
from common.plotting import matplotlib_in, png

_MOST_NUMBERED = 40
"""Sites or classes beyond which counts in the cells would be too small to read."""


def table(sites: Mapping[str, Manifest]) -> str:
    """A line per site: images of each class, of all, those on each side but training, and patients or lesions."""
    classes = _classes(sites)
    heading = ["site", *classes, "images", "validation", "test", "groups"]
    counts = {
        name: (*m.class_counts(), len(m.rows), len(m.on("validation")), len(m.on("test")), _num_groups(m))
        for name, m in sites.items()
    }
    counts["all"] = tuple(map(sum, zip(*counts.values(), strict=True)))
    lines = [heading, *([name, *map(str, line)] for name, line in counts.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        )
        for cells in lines
    )


def picture(sites: Mapping[str, Manifest], title: str, scratch: Path) -> bytes:
    """Colour is the share of a site's images, numbers are images. PNG."""
    classes, names = _classes(sites), list(sites)
    counts_SC = [manifest.class_counts() for manifest in sites.values()]
    shares_SC = [[count / max(1, sum(row_C)) for count in row_C] for row_C in counts_SC]
    with matplotlib_in(scratch):
        from matplotlib.figure import Figure

        size = (3.2 + 0.75 * len(classes), min(20.0, 1.8 + 0.42 * len(names)))
        drawn = Figure(figsize=size, dpi=120, layout="constrained")
        axes = drawn.subplots()
        image = axes.imshow(shares_SC, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        drawn.colorbar(image, ax=axes, label="share of the site's images")
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
        sizes = [f"{name} ({sum(row_C):,})" for name, row_C in zip(names, counts_SC, strict=True)]
        if len(names) <= _MOST_NUMBERED:
            axes.set_yticks(range(len(names)), sizes)
        for row, counts_C in enumerate(counts_SC if max(len(names), len(classes)) <= _MOST_NUMBERED else ()):
            for column, count in enumerate(counts_C):
                colour = "white" if shares_SC[row][column] > 0.55 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=9)
        axes.set_title(title, fontsize=11)
        return png(drawn)


def _classes(sites: Mapping[str, Manifest]) -> Sequence[str]:
    return next(iter(sites.values())).classes


def _num_groups(manifest: Manifest) -> int:
    return len({row.group_key for row in manifest.rows})
