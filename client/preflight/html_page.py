"""HTML page of a preflight: findings, counts of classes and sizes, and samples of every class.

For the data manager and the doctors of one site. It shows images and names of files, so only its owner may
read it. It holds everything it needs and forbids the browser to fetch anything. What stands where is in
`templates/`; every value is escaped there, as a class or a file may be called `<script>`.
"""

import base64
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from client.data.decoding import decode
from client.data.manifest import ImageRow, Manifest, Side
from client.data.references import BadImage
from client.preflight.data import Report
from client.preflight.findings import Finding, Rank
from common.files import write_atomically
from common.text import one_line

_SAMPLES, _MOST_SAMPLES = 16, 640
"""Images per class, and in all."""
_PICTURES, _LINES, _OPEN_LINES, _SIZES = 8, 200, 8, 8
"""Images and lines under a finding; lines that are not folded away; rows in the table of sizes."""
_THUMB = 116
"""Pixels a side."""
_IMAGES = "images"
"""Heading of the counts where no split is known."""

_BADGES: dict[Rank, str] = {"stops": "Stops the study", "look": "Worth a look", "fine": "Fine"}

_TEMPLATES = Environment(
    loader=PackageLoader("client.preflight"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["thousands"] = "{:,}".format


def write(report: Report, path: Path, now: datetime) -> None:
    """Write the page for its owner alone. Raises StorageError."""
    write_atomically(path, page(report, now).encode(errors="backslashreplace"), private=True)


def page(report: Report, now: datetime) -> str:
    """The whole page as HTML."""
    samples = _samples(report)
    shown = [row for finding in report.findings for row in finding.rows[:_PICTURES]]
    pictures = _Pictures([*shown, *(row for rows in samples.values() for row in rows)])
    manifest, sizes = report.manifest, _sizes(report)
    sides = _sides(manifest)
    return _TEMPLATES.get_template("page.html.jinja").render(
        site=report.site,
        time=f"{now:%d %B %Y, %H:%M}",
        may_take_part=report.may_take_part,
        verdict="may take part" if report.may_take_part else "may not take part until what stops it is fixed",
        tiles=_tiles(report),
        findings=[_card(finding, pictures) for finding in report.findings],
        sides=[side or _IMAGES for side in sides],
        classes=_classes(manifest, sides),
        most_of_class=max((*manifest.class_counts(), 1)),
        sizes=sizes[:_SIZES],
        num_other_sizes=len(sizes[_SIZES:]),
        num_of_other_sizes=sum(row.count for row in sizes[_SIZES:]),
        samples=[
            (name, [pictures.of(row, row.split or "") for row in rows])
            for name, rows in samples.items()
            if rows
        ],
    )


# --- values of the page ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    url: str
    """A data URL; empty for an image that cannot be shown."""
    name: str
    caption: str


@dataclass(frozen=True)
class _Card:
    """One finding; with more lines than are shown, `num_lines` counts all."""

    rank: Rank
    badge: str
    text: str
    lines: tuple[str, ...]
    num_lines: int
    pictures: tuple[_Picture, ...]

    @property
    def is_folded(self) -> bool:
        return self.num_lines > _OPEN_LINES


@dataclass(frozen=True)
class _ClassRow:
    name: str
    counts: tuple[int, ...]
    """Images by side."""
    num_groups: int


@dataclass(frozen=True)
class _SizeRow:
    width: int
    height: int
    channels: str
    count: int


def _tiles(report: Report) -> list[tuple[str, str]]:
    ranks = Counter(finding.rank for finding in report.findings)
    rows = report.manifest.rows
    return [
        (f"{len(rows):,}", "images"),
        (f"{len({row.group_key for row in rows}):,}", "patients or lesions"),
        (f"{sum(count > 0 for count in report.manifest.class_counts())}", "classes with images"),
        (
            " / ".join(f"{len(report.manifest.on(side)):,}" for side in get_args(Side)),
            " / ".join(get_args(Side)),
        ),
        (f"{ranks['stops']} / {ranks['look']}", "stop the study / worth a look"),
    ]


def _card(finding: Finding, pictures: "_Pictures") -> _Card:
    return _Card(
        finding.rank,
        _BADGES[finding.rank],
        finding.what[:1].upper() + finding.what[1:],
        tuple(map(one_line, finding.items[:_LINES])),
        len(finding.items),
        tuple(pictures.of(row, row.label) for row in finding.rows[:_PICTURES]),
    )


def _sides(manifest: Manifest) -> tuple[Side | None, ...]:
    return get_args(Side) if any(row.split for row in manifest.rows) else (None,)


def _classes(manifest: Manifest, sides: tuple[Side | None, ...]) -> list[_ClassRow]:
    """No row where there is no image at all."""
    if not manifest.rows:
        return []
    groups = Counter(label for label, _ in {(row.label, row.group_key) for row in manifest.rows})
    counts = zip(*(manifest.class_counts(side) for side in sides), strict=True)
    return [
        _ClassRow(name, by_side, groups[name]) for name, by_side in zip(manifest.classes, counts, strict=True)
    ]


def _sizes(report: Report) -> list[_SizeRow]:
    """The most frequent size first."""
    sizes = Counter((image.size, image.kind) for image in report.readable)
    return [_SizeRow(*size, kind, count) for (size, kind), count in sizes.most_common()]


def _samples(report: Report) -> dict[str, list[ImageRow]]:
    """Some images of each class, chosen by a hash of their names, so that a second page shows the same."""
    classes = report.manifest.classes
    bad = {image.row.image.key for image in report.images if image.problem}
    each = max(1, min(_SAMPLES, _MOST_SAMPLES // max(len(classes), 1)))
    rows = sorted(
        (row for row in report.manifest.rows if row.image.key not in bad),
        key=lambda row: hashlib.sha256(os.fsencode(row.image.name)).digest(),
    )
    return {name: [row for row in rows if row.label == name][:each] for name in classes}


# --- pictures ----------------------------------------------------------------------------------


class _Pictures:
    """Small pictures of some images, each made once."""

    def __init__(self, rows: Iterable[ImageRow]) -> None:
        # In the order of files: frames and slices of one file are read one after another.
        ordered = sorted({row.image.key: row for row in rows}.values(), key=lambda row: row.image.key)
        with ThreadPoolExecutor(2, "page") as pool:
            urls = list(pool.map(_thumb, ordered))
        self._urls = {row.image.key: url for row, url in zip(ordered, urls, strict=True)}

    def of(self, row: ImageRow, caption: str) -> _Picture:
        return _Picture(self._urls[row.image.key], one_line(row.image.name), caption)


def _thumb(row: ImageRow) -> str:
    """A data URL, or nothing for an image that cannot be shown."""
    try:
        square = decode.decode(row.image, _THUMB, "bilinear")
    except (BadImage, OSError):
        return ""
    buffer = io.BytesIO()
    Image.fromarray(square).save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
