"""Kept split: the split of a site on its disk, so that it never changes during a study.

A drawn split depends on every image and on the library that draws. One image more, or another
version, and a study that goes on next week tests on what it trained on today. So the split
is drawn once, written to a file and read again. Images that came later follow their lesion or patient; those
of new ones train, for a test set that grows is another test. A person who wants another split
removes the file, or gives another seed.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

from client.config import SplitConfig
from client.data.manifest import ImageRow, Manifest, Side
from client.data.splitting.split import groups_on_both_sides, split
from common.errors import SiteDataError
from common.files import write_atomically
from common.log import event, warn


def kept(manifest: Manifest, config: SplitConfig, state_dir: Path) -> Manifest:
    """`split`, drawn now or as it was drawn before. Raises SiteDataError, StorageError."""
    path = _path(manifest, config, state_dir)
    if path is None:
        return split(manifest, config)
    before = _read(path) if path.exists() else {}
    settled = _settled(manifest, config, before)
    sides = {**before, **_sides(settled.rows)}
    if not any(row.image.key in before for row in manifest.rows):
        event(f"drew the split and wrote it to {path}")
    elif num_new := len(sides) - len(before):
        warn(
            f"{num_new} image(s) came after the split was drawn: those of a known group follow it, the others train. "
            f"For a new split remove {path}"
        )
    if sides != before:
        _write(path, sides)
    return settled


def foreseen(manifest: Manifest, config: SplitConfig, state_dir: Path) -> Manifest:
    """What `kept` would return now; nothing is written. Raises SiteDataError."""
    path = _path(manifest, config, state_dir)
    return _settled(manifest, config, {} if path is None or not path.exists() else _read(path))


def _path(manifest: Manifest, config: SplitConfig, state_dir: Path) -> Path | None:
    """Where the split is kept; None if nothing is drawn, because the data or the YAML says it."""
    match config.kind:
        case "column" | "none":
            return None
        case "grouped" | "kfold" | "by_image":
            return state_dir / "splits" / f"{_name(config, manifest.classes)}.csv"


def _settled(manifest: Manifest, config: SplitConfig, before: Mapping[str, Side]) -> Manifest:
    if not any(row.image.key in before for row in manifest.rows):
        return split(manifest, config)
    rows = tuple(_placed(manifest.rows, before))
    if config.kind != "by_image" and (on_both := groups_on_both_sides(rows)):
        raise SiteDataError(
            f"{len(on_both)} patient(s) or lesion(s) have images on both sides of the split that was drawn earlier, "
            f"because images are joined otherwise now: {', '.join(on_both[:5])}. Put the table back as it was, or "
            "remove the split under state_dir/splits, for a new split and a new study"
        )
    return Manifest(rows, manifest.classes)


def _placed(rows: Sequence[ImageRow], before: Mapping[str, Side]) -> list[ImageRow]:
    of_group = {row.group: before[row.image.key] for row in rows if row.group and row.image.key in before}
    placed = []
    for row in rows:
        side: Side = before.get(row.image.key) or of_group.get(row.group or "", "train")
        placed.append(replace(row, split=side))
    return placed


def _sides(rows: Sequence[ImageRow]) -> dict[str, Side]:
    return {row.image.key: "test" if row.split == "test" else "train" for row in rows}


def _name(config: SplitConfig, classes: Sequence[str]) -> str:
    """Name of the file; another one for other classes, whose study has other images to divide."""
    what = f"{config.model_dump_json()} {' '.join(classes)}"
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
            assert side in ("train", "test")
            sides[image] = "test" if side == "test" else "train"
    except (OSError, ValueError, AssertionError, IndexError, csv.Error) as error:
        raise SiteDataError(
            f"{path} is not a split as it was written ({type(error).__name__}); put it back from a copy, or "
            "remove it to draw a new split, which may test on images that were trained on"
        ) from error
    return sides
