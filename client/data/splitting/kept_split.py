"""Kept split: the split of a site on its disk, so that it never changes during a study.

A drawn split depends on every image and on the library that draws. One image more, or another
version, and a study that goes on next week tests on what it trained on today. So the split
is drawn once, written to a file and read again. Images that came later follow their lesion or patient; those
of new ones train, for a test set that grows is another test. A person who wants another split
removes the file, or gives another seed.

A split that an earlier version kept has no validation images. Its test images stay, and validation images are
drawn from its training images.
"""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import get_args

from client.config import SplitConfig
from client.data.manifest import ImageRow, Manifest, Side
from client.data.splitting.split import groups_on_both_sides, split, tested, with_validation
from common.errors import SiteDataError
from common.files import write_atomically
from common.log import event, warn


def kept(manifest: Manifest, config: SplitConfig, state_dir: Path) -> Manifest:
    """`split`, drawn now or as it was drawn before. Raises SiteDataError, StorageError."""
    path = _path(manifest, config, state_dir)
    if path is None:
        return split(manifest, config)
    before, older = _before(manifest, config, path)
    settled = _settled(manifest, config, before, older)
    sides = {**before, **older, **_sides(settled.rows)}
    known = before.keys() | older.keys()
    if not any(row.image.key in known for row in manifest.rows):
        event(f"drew the split and wrote it to {path}")
    elif num_new := len(sides.keys() - known):
        warn(
            f"{num_new} image(s) came after the split was drawn: those of a known group follow it, the others train. "
            f"For a new split remove {path}"
        )
    if older:
        event(f"the test images are those of the split before; the split with validation images is in {path}")
    if sides != before:
        _write(path, sides)
    return settled


def foreseen(manifest: Manifest, config: SplitConfig, state_dir: Path) -> Manifest:
    """What `kept` would return now; nothing is written. Raises SiteDataError."""
    path = _path(manifest, config, state_dir)
    if path is None:
        return split(manifest, config)
    return _settled(manifest, config, *_before(manifest, config, path))


def _path(manifest: Manifest, config: SplitConfig, state_dir: Path) -> Path | None:
    """Where the split is kept; None if nothing is drawn, because the data or the YAML says it."""
    if config.kind in ("column", "none") and not config.validation:
        return None
    return state_dir / "splits" / f"{_name(config, manifest.classes)}.csv"


def _before(
    manifest: Manifest, config: SplitConfig, path: Path
) -> tuple[Mapping[str, Side], Mapping[str, Side]]:
    """The split as it was kept, and as an earlier version without validation images kept it; one or both are empty."""
    if path.exists():
        return _read(path), {}
    older = path.with_name(f"{_name(config, manifest.classes, with_validation=False)}.csv")
    return {}, _read(older) if older.exists() else {}


def _settled(
    manifest: Manifest, config: SplitConfig, before: Mapping[str, Side], older: Mapping[str, Side]
) -> Manifest:
    if config.kind in ("column", "none"):
        settled = tested(manifest, config)
        if not before:
            return with_validation(settled, config)
        # What the data says goes before what was kept; only training images can be for validation.
        was = {key: side for key, side in before.items() if side != "test"}
        drawn = {row.image.key: row.split for row in _placed(settled.on("train"), was)}
        rows = tuple(replace(row, split=drawn.get(row.image.key, row.split)) for row in settled.rows)
        return _checked(replace(settled, rows=rows), config)
    known = {**before, **older}
    if not any(row.image.key in known for row in manifest.rows):
        return split(manifest, config)
    placed = _checked(Manifest(tuple(_placed(manifest.rows, known)), manifest.classes), config)
    return with_validation(placed, config) if older else placed


def _checked(manifest: Manifest, config: SplitConfig) -> Manifest:
    if config.kind != "by_image" and (on_both := groups_on_both_sides(manifest.rows)):
        raise SiteDataError(
            f"{len(on_both)} patient(s) or lesion(s) have images on two sides of the split that was drawn earlier, "
            f"because images are joined otherwise now: {', '.join(on_both[:5])}. Put the table back as it was, or "
            "remove the split under state_dir/splits, for a new split and a new study"
        )
    return manifest


def _placed(rows: Sequence[ImageRow], before: Mapping[str, Side]) -> list[ImageRow]:
    of_group = {row.group: before[row.image.key] for row in rows if row.group and row.image.key in before}
    placed = []
    for row in rows:
        side: Side = before.get(row.image.key) or of_group.get(row.group or "", "train")
        placed.append(replace(row, split=side))
    return placed


def _sides(rows: Sequence[ImageRow]) -> dict[str, Side]:
    return {row.image.key: _side(row.split) for row in rows}


def _side(name: str | None) -> Side:
    return next(side for side in get_args(Side) if side == name)


def _name(config: SplitConfig, classes: Sequence[str], *, with_validation: bool = True) -> str:
    """Name of the file; another one for other classes, whose study has other images to divide.

    Without validation it is the name that earlier versions gave.
    """
    settings = config.model_dump(mode="json", exclude={"validation"})
    text = json.dumps(settings, separators=(",", ":")) + (
        f" {config.validation:g}" if with_validation else ""
    )
    what = f"{text} {' '.join(classes)}"
    return f"{config.kind}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def _write(path: Path, sides: dict[str, Side]) -> None:
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "split"])
    writer.writerows(sorted(sides.items()))
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def _read(path: Path) -> dict[str, Side]:
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()))
        assert rows[0] == ["image", "split"]
        sides: dict[str, Side] = {}
        for image, side in rows[1:]:
            sides[image] = _side(side)
    except (OSError, ValueError, AssertionError, IndexError, StopIteration, csv.Error) as error:
        raise SiteDataError(
            f"{path} is not a split as it was written ({type(error).__name__}); put it back from a copy, or "
            "remove it to draw a new split, which may test on images that were trained on"
        ) from error
    return sides
