"""The split of a site, kept on its disk, so that it never changes under a study.

A drawn split depends on every image and on the library that draws. One image more, or another
version, and a study that goes on next week tests on what it trained on today. So what was drawn
once is written down and read again. Images that came later follow their lesion or patient; those
of new ones train, for a test set that grows is another test. A person who wants another split
removes the file, or gives another seed.
"""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

from client.config import SplitConfig
from client.data.manifest import ImageRow, Manifest, Side
from client.data.split import split
from common.errors import SiteDataError
from common.log import event, warn
from common.weights import write_atomically


def kept(manifest: Manifest, config: SplitConfig, state_dir: Path) -> Manifest:
    """`split`, drawn now or as it was drawn before. Raises SiteDataError, StorageError."""
    match config.kind:
        case "column" | "none":
            return split(manifest, config)  # nothing is drawn: the data or the YAML says it
        case "grouped" | "kfold" | "by_image":
            pass
    path = state_dir / "splits" / f"{_name(config, manifest.classes)}.csv"
    before = _read(path) if path.exists() else {}
    if not any(row.image.key in before for row in manifest.rows):
        drawn = split(manifest, config)
        _write(path, {**before, **_sides(drawn.rows)})
        event(f"drew the split and wrote it to {path}")
        return drawn
    rows = tuple(_placed(manifest.rows, before))
    if len(new := {row.image.key: row.split for row in rows} | before) > len(before):
        warn(
            f"{len(new) - len(before)} image(s) came after the split was drawn: those of a known group follow "
            f"it, the others train. For a new split remove {path}"
        )
        _write(path, {**before, **_sides(rows)})
    return Manifest(rows, manifest.classes)


def _placed(rows: Sequence[ImageRow], before: dict[str, Side]) -> list[ImageRow]:
    of_group = {row.group: before[row.image.key] for row in rows if row.group and row.image.key in before}
    placed = []
    for row in rows:
        side: Side = before.get(row.image.key) or of_group.get(row.group or "", "train")
        placed.append(replace(row, split=side))
    return placed


def _sides(rows: Sequence[ImageRow]) -> dict[str, Side]:
    return {row.image.key: "test" if row.split == "test" else "train" for row in rows}


def _name(config: SplitConfig, classes: Sequence[str]) -> str:
    """Another one for other classes: a study of them has other images to divide."""
    what = f"{config.model_dump_json()} {' '.join(classes)}"
    return f"{config.kind}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def _write(path: Path, sides: dict[str, Side]) -> None:
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "split"])
    writer.writerows(sorted(sides.items()))
    write_atomically(path, text.getvalue().encode())


def _read(path: Path) -> dict[str, Side]:
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
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
