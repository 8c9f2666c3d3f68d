"""Manifest of a site: one row per image, before anything is decoded.

Every reader produces this and nothing behind it knows where rows came from, except that each
row carries its `source`, so that an error names the line that is wrong.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NoReturn

from client.data.references import ImageReference
from common.errors import SiteDataError

Side = Literal["train", "validation", "test"]

SIDES: dict[str, Side] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""What data sets call the three sides. Nothing trains on validation images, and everything that is chosen is chosen by
them; the test images stay those that others have published figures on."""

_SHOWN = 20


@dataclass(frozen=True)
class ImageRow:
    """One image with its label, group and side."""

    image: ImageReference
    label: str
    group: str | None
    """Images of one group stay on one side of a split, see `grouped`; None: neither patient nor lesion is known."""
    split: str | None
    """As the data says it until `split` has made it a `Side`."""
    source: str
    """For a person, e.g. "labels.csv row 12"."""
    patient: str | None = None
    lesion: str | None = None
    acquisition: str | None = None
    """Device, clinic or collection that the image is from, as the data calls it."""
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What the site's table says of the image, by attribute (`data.subgroups`), as the table says it."""

    @property
    def group_key(self) -> str:
        """The same for images of one group; an image of no known group is one of its own."""
        return f"group {self.group}" if self.group else f"image {self.image.key}"


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
        """Images per class in the study's order, of one side or of all."""
        labels = [row.label for row in (self.rows if side is None else self.on(side))]
        return tuple(labels.count(name) for name in self.classes)


def places(rows: Sequence[ImageRow]) -> list[str]:
    """Of each image, its key below the folder that holds them all: the same wherever that folder lies."""
    home = os.path.commonpath([path.parent for row in rows for path in row.image.files]) if rows else ""
    return [os.path.relpath(row.image.key, home) for row in rows]


def grouped(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """Rows with the group that follows from all patients, lesions and groups that are known.

    Whatever is joined by a patient or by a lesion, directly or through other images, is one group:
    where a lesion is filed under two patients, both are on one side.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for row in rows:
        for other in (names := _owners(row))[1:]:
            # The smaller name stands for both, so that the order of rows does not matter.
            low, high = sorted((root(names[0]), root(other)))
            parent[high] = low
    return [replace(row, group=root(names[0]) if (names := _owners(row)) else None) for row in rows]


def _owners(row: ImageRow) -> list[str]:
    # Names of their own: a lesion may be called like a patient.
    owners = [f"{kind} {name}" for kind, name in (("patient", row.patient), ("lesion", row.lesion)) if name]
    return [*owners, row.group] if row.group else owners


def refuse(what: str, problems: Sequence[str], advice: str) -> NoReturn:
    """Raise one SiteDataError for all problems; a long list is cut after its first lines."""
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN} more")
    noun = "problem" if len(problems) == 1 else "problems"
    raise SiteDataError("\n".join([f"{what}: {len(problems)} {noun}:", *lines, advice]))
