"""Preflight: reads everything that a site would train on, once, and says what is wrong with it.

A data manager mends a data set in one go or loses a day, so all findings come at once, ranked by
what they mean: `stops` keeps the site out of a study, `look` is for a person to judge, `fine` is
what was counted. Nothing is trained, nothing is written, nothing leaves.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from client.config import SiteConfig
from client.data import duplicates, pixels, readers
from client.data.manifest import ImageRow, Manifest
from client.data.references import BadImage, PictureFile
from client.data.split import split
from client.findings import RANKS, Finding
from common import log
from common.errors import SiteDataError

FEW_GROUPS, SMALL, BLANK = 5, 64, 2.0
"""Patients or lesions of a class; pixels a side; standard deviation of 8-bit pixels."""
_SIDE, _TELL_S, _MOST_SHOWN = 64, 5.0, 20


@dataclass(frozen=True)
class _Seen:
    """One image file, opened."""

    row: ImageRow
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    spread: float = 0.0
    """Largest standard deviation of a channel."""
    digest: str = ""
    fingerprint: int = 0


def check(site: SiteConfig, classes: Sequence[str] | None = None) -> list[Finding]:
    """Everything found, the worst first. Without `classes`, those that the data has are taken."""
    started = time.monotonic()
    try:
        names = tuple(classes) if classes is not None else readers.labels(site.data)
        manifest = readers.read(site.data, names)
    except SiteDataError as error:
        return [Finding("stops", str(error))]
    seen = _open(manifest.rows, site.threads)
    decode_s = time.monotonic() - started
    findings = [*_files(seen), *_twice(seen), *_classes(manifest), *_split(manifest, site, seen)]
    findings.append(_summary(manifest, seen, decode_s))
    return sorted(findings, key=lambda finding: RANKS.index(finding.rank))


# --- looking at files ------------------------------------------------------------------------


def _open(rows: Sequence[ImageRow], num_threads: int | None) -> list[_Seen]:
    told = time.monotonic()
    seen = []
    with ThreadPoolExecutor(num_threads or os.cpu_count(), "check") as pool:
        for number, found in enumerate(pool.map(_look_at, rows), start=1):
            seen.append(found)
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                log.event(f"{number} of {len(rows)} images read", done=number, images=len(rows))
    return seen


def _look_at(row: ImageRow) -> _Seen:
    try:
        square = pixels.decode(row.image, _SIDE, "bilinear")
        if isinstance(row.image, PictureFile):
            digest = hashlib.sha256(row.image.path.read_bytes()).hexdigest()
            with Image.open(row.image.path) as image:
                size, mode = image.size, image.mode
        else:  # a part of a file is compared by what it shows
            digest = hashlib.sha256(square.tobytes()).hexdigest()
            part = pixels.load(row.image, _SIDE)
            size, mode = part.size, part.mode
    except OSError as error:
        return _Seen(row, problem=f"cannot be read ({error.strerror or type(error).__name__})")
    except BadImage as bad:
        return _Seen(row, problem=str(bad))
    return _Seen(
        row, "", size, mode, float(square.std(axis=(0, 1)).max()), digest, duplicates.fingerprint(square)
    )


def _files(seen: Sequence[_Seen]) -> Iterator[Finding]:
    bad = [f"{_where(image)} {image.problem}" for image in seen if image.problem]
    if bad:
        yield Finding(
            "stops", _list(f"{len(bad)} image(s) cannot be used; mend, replace or remove them", bad)
        )
    whole = [image for image in seen if not image.problem]
    blank = [_where(image) for image in whole if image.spread < BLANK]
    if blank:
        yield Finding(
            "look", _list(f"{len(blank)} image(s) show one flat colour; remove them if they are blank", blank)
        )
    small = [
        f"{_where(image)}: {image.size[0]} x {image.size[1]}" for image in whole if min(image.size) < SMALL
    ]
    if small:
        yield Finding(
            "look", _list(f"{len(small)} image(s) have fewer than {SMALL} pixels a side; thumbnails?", small)
        )
    modes = Counter(image.mode for image in whole)
    if len(modes) > 1:
        usual, _ = modes.most_common(1)[0]
        odd = [f"{_where(image)}: {image.mode}" for image in whole if image.mode != usual]
        yield Finding("look", _list(f"{len(odd)} image(s) are not {usual} like most; all become RGB", odd))


def _twice(seen: Sequence[_Seen]) -> Iterator[Finding]:
    whole = [image for image in seen if not image.problem]
    contradicting: list[str] = []
    repeated: list[str] = []
    for places in duplicates.same([image.digest for image in whole]):
        rows = [whole[place].row for place in places]
        told = " = ".join(_where(whole[place]) for place in places)
        (contradicting if len({row.label for row in rows}) > 1 else repeated).append(told)
    if contradicting:
        yield Finding(
            "stops", _list("the same file under two classes; one label is wrong", contradicting)
        )  # fmt: skip
    if repeated:
        yield Finding(
            "look", _list("the same file is there more than once and counts more than once", repeated)
        )
    near = [
        f"{_where(whole[one])} ~ {_where(whole[other])} ({bits} of 64 bits differ)"
        for one, other, bits in duplicates.near([image.fingerprint for image in whole])
        if whole[one].digest != whole[other].digest and _group(whole[one].row) != _group(whole[other].row)
    ]
    if near:
        yield Finding(
            "look", _list("pictures that are nearly the same belong to different patients or lesions", near)
        )  # fmt: skip


# --- looking at the whole --------------------------------------------------------------------


def _classes(manifest: Manifest) -> Iterator[Finding]:
    groups: dict[str, set[str]] = {name: set() for name in manifest.classes}
    for row in manifest.rows:
        groups[row.label].add(_group(row))
    few = [f"{name}: {len(found)}" for name, found in groups.items() if 0 < len(found) < FEW_GROUPS]
    if few:
        text = f"classes with fewer than {FEW_GROUPS} patients or lesions; a test on them says little"
        yield Finding("look", _list(text, few))
    none = [name for name, found in groups.items() if not found]
    if none:
        yield Finding(
            "look", _list("classes of the study without an image here; other sites may have them", none)
        )
    alone = sum(row.group is None for row in manifest.rows)
    if alone:
        yield Finding(
            "look",
            f"{alone} of {len(manifest.rows)} images name no patient or lesion: if one has several images, they may be "
            "trained and tested on; name the column in the site's YAML",
        )  # fmt: skip


def _split(manifest: Manifest, site: SiteConfig, seen: Sequence[_Seen]) -> Iterator[Finding]:
    try:
        sides = {row.image.key: row.split for row in split(manifest, site.split).rows}
    except SiteDataError as error:
        yield Finding("stops", str(error))
        return
    whole = [image for image in seen if not image.problem]
    torn = [
        " = ".join(f"{_where(whole[place])} ({sides[whole[place].row.image.key]})" for place in places)
        for places in duplicates.same([image.digest for image in whole])
        if len({sides[whole[place].row.image.key] for place in places}) > 1
    ]
    if torn:
        yield Finding("stops", _list("the same file is trained and tested on; remove one of each", torn))


def _summary(manifest: Manifest, seen: Sequence[_Seen], decode_s: float) -> Finding:
    whole = [image for image in seen if not image.problem]
    counts = ", ".join(f"{n} {c}" for n, c in zip(manifest.classes, manifest.class_counts(), strict=True))
    sizes = [image.size for image in whole] or [(0, 0)]
    mib = len(manifest.rows) * 256 * 256 * 3 / 2**20
    return Finding(
        "fine",
        f"{len(manifest.rows)} images of {len({_group(row) for row in manifest.rows})} patients or lesions ({counts}); "
        f"{min(w for w, _ in sizes)} x {min(h for _, h in sizes)} to {max(w for w, _ in sizes)} x "
        f"{max(h for _, h in sizes)} pixels; all read in {decode_s:.0f} s; kept for training at 224 pixels they take "
        f"{mib:,.0f} MiB",
    )


def _group(row: ImageRow) -> str:
    return f"group {row.group}" if row.group else f"image {row.image.key}"


def _where(image: _Seen) -> str:
    return f"{image.row.source} ({image.row.image.name})"


def _list(what: str, items: Sequence[str]) -> str:
    more = [f"  ... and {len(items) - _MOST_SHOWN} more"] if len(items) > _MOST_SHOWN else []
    return "\n".join([f"{what}:", *(f"  {item}" for item in items[:_MOST_SHOWN]), *more])
