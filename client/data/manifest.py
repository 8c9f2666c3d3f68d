"""What a site holds: one row per image, before anything is decoded.

Every reader produces this and nothing behind it knows where rows came from, except that each
row carries its `source`, so that a person can be sent to the line that is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from common.errors import SiteDataError

Side = Literal["train", "test"]

SIDES: dict[str, Side] = {
    "train": "train",
    "training": "train",
    "val": "train",
    "valid": "train",
    "validation": "train",
    "test": "test",
    "testing": "test",
}
"""What data sets call the two sides. Validation images train: nothing here is chosen by them,
and the test images stay those that others have published figures on."""

_SHOWN = 20


@dataclass(frozen=True)
class ImageRow:
    """One image and what is known of it."""

    path: Path
    label: str
    group: str | None
    """Lesion or patient; None: not known."""
    split: str | None
    """As the data says it until `split` has made it "train" or "test"."""
    source: str
    """For a person, e.g. "labels.csv row 12"."""


@dataclass(frozen=True)
class Manifest:
    """All images of a site, in an order that depends on the data alone."""

    rows: tuple[ImageRow, ...]
    classes: tuple[str, ...]
    """Of the study; every row's label is one of them."""

    def on(self, side: Side) -> tuple[ImageRow, ...]:
        """The rows of one side of the split."""
        return tuple(row for row in self.rows if row.split == side)

    def class_counts(self, side: Side | None = None) -> tuple[int, ...]:
        """Images per class in the study's order, of one side or of both."""
        labels = [row.label for row in (self.rows if side is None else self.on(side))]
        return tuple(labels.count(name) for name in self.classes)


def refuse(what: str, problems: Sequence[str], advice: str) -> NoReturn:
    """Raise one SiteDataError for all problems; a long list is cut after its first lines."""
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN} more")
    noun = "problem" if len(problems) == 1 else "problems"
    raise SiteDataError("\n".join([f"{what}: {len(problems)} {noun}:", *lines, advice]))
