"""Preflight: reads everything that a site would train on, once, and says what is wrong with it.

A data manager mends a data set in one go or loses a day, so all findings come at once, ranked by
what they mean: `stops` keeps the site out of a study, `look` is for a person to judge, `fine` is
what was counted. Nothing is trained, nothing is written, nothing leaves.
"""

import os
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from client.config import ByImageSplit, CsvData, NoSplit, SiteConfig
from client.data import duplicates
from client.data.manifest import ImageRow, Manifest
from client.data.progress import shown
from client.data.readers import read
from client.data.readers.folders import images_in
from client.data.readers.table import read_table
from client.data.splitting.kept_split import foreseen
from client.preflight.findings import Finding, Rank, may_take_part, ranked
from client.preflight.inspection import Seen, inspect
from common.errors import SiteDataError

FEW_GROUPS, SMALL, BLANK = 5, 64, 2.0
"""Patients or lesions of a class; pixels a side; standard deviation of 8-bit pixels."""
FAR, FAR_SHARE = 3.0, 0.1
"""Times the median size, or its proportions; the most images that may be so and still be called exceptions."""
USUAL_SIDE = 256
"""Pixels a side that training keeps of an image for an encoder of 224."""


@dataclass(frozen=True)
class Report:
    """Everything that was found at a site."""

    site: str
    findings: tuple[Finding, ...]
    """The worst first."""
    manifest: Manifest
    """The rows that could be read; without sides if no split is possible."""
    seen: tuple[Seen, ...] = ()

    @property
    def may_take_part(self) -> bool:
        """False if something stops the site."""
        return may_take_part(self.findings)

    @property
    def whole(self) -> tuple[Seen, ...]:
        """Images without a problem of their own."""
        return tuple(image for image in self.seen if not image.problem)


def check(site: SiteConfig, classes: Sequence[str] | None = None, stored_side: int = USUAL_SIDE) -> Report:
    """Everything found. Without `classes`, those that the data has are taken.

    `stored_side` is what training will keep of an image, in pixels a side.
    """
    try:
        survey = read.survey(site.data, classes)
    except SiteDataError as error:
        return Report(site.name, (Finding("stops", str(error)),), Manifest((), tuple(classes or ())))
    if not survey.manifest.rows and not survey.problems:
        return Report(site.name, (Finding("stops", read.nothing(survey)),), survey.manifest)
    num_threads = site.threads or os.cpu_count() or 1
    seen = _open(survey.manifest.rows, stored_side, num_threads)
    manifest, split_findings = _split(survey.manifest, site)
    findings = [
        *_read(survey),
        *_unnamed(site),
        *_files(seen),
        *_sizes(seen),
        *_kinds(seen),
        *_text(seen),
        *_twice(seen, manifest),
        *_classes(manifest),
        *split_findings,
        *_room(len(manifest.rows), site, stored_side),
    ]
    if seen:
        findings.append(_summary(manifest, seen))
        findings.append(_speed(seen, stored_side, num_threads))
    return Report(site.name, ranked(findings), manifest, tuple(seen))


def _open(rows: Sequence[ImageRow], side: int, num_threads: int) -> list[Seen]:
    # Pillow decodes and resizes without the interpreter's lock, so threads do.
    with ThreadPoolExecutor(num_threads, "check") as pool:
        return list(shown(pool.map(lambda row: inspect(row, side), rows), len(rows), "images read"))


# --- what the reader says ----------------------------------------------------------------------


def _read(survey: read.Survey) -> Iterator[Finding]:
    if survey.problems:
        yield Finding(
            "stops",
            f"{len(survey.problems)} problem(s) in {survey.where.name}; mend it or the images it names",
            survey.problems,
        )
    if survey.num_repeats:
        yield Finding("look", f"{survey.num_repeats} row(s) repeat another row and count once")


def _unnamed(site: SiteConfig) -> Iterator[Finding]:
    """Pictures beside a table that no row of it names."""
    data = site.data
    if not isinstance(data, CsvData) or data.row_filter or data.image_list:
        return
    cells = (row.get(data.columns.image, "") for _, row in read_table(data.labels).rows)
    named = {os.path.normpath(data.image_folder / cell) for cell in cells}
    left = [path for path in images_in(data.image_folder) if os.path.normpath(path) not in named]
    if left:
        yield Finding(
            "look",
            f"{len(left)} image file(s) have no row in {data.labels.name} and are not used",
            tuple(str(path.relative_to(data.image_folder)) for path in left),
        )


# --- looking at files ------------------------------------------------------------------------


def _files(seen: Sequence[Seen]) -> Iterator[Finding]:
    bad = [image for image in seen if image.problem]
    if bad:
        yield Finding(
            "stops",
            f"{len(bad)} image(s) cannot be used; mend, replace or remove them",
            tuple(f"{_where(image)} {image.problem}" for image in bad),
        )
    yield from _each(
        [image for image in seen if not image.problem and image.spread < BLANK],
        "{} image(s) show one flat colour; remove them if they are blank",
    )


def _sizes(seen: Sequence[Seen]) -> Iterator[Finding]:
    whole = [image for image in seen if not image.problem]
    small = [image for image in whole if min(image.size) < SMALL]
    yield from _each(small, f"{{}} image(s) have fewer than {SMALL} pixels a side; thumbnails?", _told_size)
    if not whole:
        return
    usual = statistics.median(image.size[0] * image.size[1] for image in whole) ** 0.5
    shape = statistics.median(_proportion(image) for image in whole)
    odd = [
        image
        for image in whole
        if min(image.size) >= SMALL
        and (
            not 1 / FAR < (image.size[0] * image.size[1]) ** 0.5 / usual < FAR
            or not 1 / FAR < _proportion(image) / shape < FAR
        )
    ]
    if len(odd) <= FAR_SHARE * len(whole):
        yield from _each(
            odd,
            f"{{}} image(s) are of another size or shape than the rest ({FAR:g} times the median or more); sheets, "
            "strips or scans of something else?",
            _told_size,
        )


def _told_size(image: Seen) -> str:
    return f"{image.size[0]} x {image.size[1]}"


def _proportion(image: Seen) -> float:
    return max(image.size) / min(image.size)


def _kinds(seen: Sequence[Seen]) -> Iterator[Finding]:
    whole = [image for image in seen if not image.problem and image.spread >= BLANK]
    kinds = Counter(image.kind for image in whole)
    if len(kinds) > 1:
        usual, _ = kinds.most_common(1)[0]
        yield from _each(
            [image for image in whole if image.kind != usual],
            f"{{}} image(s) are not {usual} like most; all become RGB",
            lambda image: image.kind,
        )


def _text(seen: Sequence[Seen]) -> Iterator[Finding]:
    yield from _each(
        [image for image in seen if image.text == "said"],
        "{} image(s) say that text is burned in (BurnedInAnnotation); cut it off if it names a patient: "
        "a model can learn it",
    )
    yield from _each(
        [image for image in seen if image.text == "suspected"],
        "{} image(s) look as if text were burned in; look at them, and cut it off if it names a patient: a model can "
        "learn it",
    )


def _twice(seen: Sequence[Seen], manifest: Manifest) -> Iterator[Finding]:
    whole = [image for image in seen if not image.problem]
    sides = _sides(manifest)
    contradicting: list[tuple[int, ...]] = []
    repeated: list[tuple[int, ...]] = []
    for places in duplicates.same([image.digest for image in whole]):
        labels = {whole[place].row.label for place in places}
        (contradicting if len(labels) > 1 else repeated).append(places)

    def finding(rank: Rank, what: str, found: Sequence[tuple[int, ...]]) -> Finding:
        items = [" = ".join(_where(whole[place]) for place in places) for places in found]
        return Finding(
            rank, what, tuple(items), tuple(whole[place].row for places in found for place in places)
        )

    if contradicting:
        yield finding("stops", "the same file under two classes; one label is wrong", contradicting)
    if repeated:
        yield finding("look", "the same file is there more than once and counts more than once", repeated)
    torn = [
        places
        for places in (*contradicting, *repeated)
        if len({sides.get(whole[place].row.image.key) for place in places}) > 1
    ]
    if torn:
        yield finding("stops", "the same file is trained and tested on; remove one of each", torn)
    yield from _near(whole, sides)


def _near(whole: Sequence[Seen], sides: dict[str, str | None]) -> Iterator[Finding]:
    pairs = []
    for one, other, bits in duplicates.near([image.fingerprint for image in whole]):
        left, right = whole[one], whole[other]
        if left.digest != right.digest and _group(left.row) != _group(right.row):
            on = [sides.get(image.row.image.key) for image in (left, right)]
            pairs.append((len(set(on)) == 1, bits, left, right, on))
    if not pairs:
        return
    pairs.sort(key=lambda pair: pair[:2])  # those that make a test easier first
    across = sum(not together for together, *_ in pairs)
    yield Finding(
        "look",
        f"{len(pairs)} pair(s) of pictures that are nearly the same belong to different patients or lesions"
        + (f", {across} of them one in train and one in test" if across else ""),
        tuple(
            f"{_where(left)} ~ {_where(right)} ({bits} of 64 bits differ{'' if together else '; train and test'})"
            for together, bits, left, right, _ in pairs
        ),
        tuple(image.row for _, _, left, right, _ in pairs for image in (left, right)),
    )


def _each(images: Sequence[Seen], what: str, told: Callable[[Seen], str] | None = None) -> Iterator[Finding]:
    if images:
        yield Finding(
            "look",
            what.format(len(images)),
            tuple(_where(image) + (f": {told(image)}" if told else "") for image in images),
            tuple(image.row for image in images),
        )


# --- looking at the whole --------------------------------------------------------------------


def _classes(manifest: Manifest) -> Iterator[Finding]:
    groups: dict[str, set[str]] = {name: set() for name in manifest.classes}
    for row in manifest.rows:
        groups[row.label].add(_group(row))
    few = [f"{name}: {len(found)}" for name, found in groups.items() if 0 < len(found) < FEW_GROUPS]
    if few:
        text = f"classes with fewer than {FEW_GROUPS} patients or lesions; a test on them says little"
        yield Finding("look", text, tuple(few))
    none = [name for name, found in groups.items() if not found]
    if none:
        yield Finding(
            "look", "classes of the study without an image here; other sites may have them", tuple(none)
        )
    alone = sum(row.group is None for row in manifest.rows)
    if alone:
        yield Finding(
            "look",
            f"{alone} of {len(manifest.rows)} images name no patient or lesion: if one has several images, they may be "
            "trained and tested on; name the column in the site's YAML",
        )


def _split(manifest: Manifest, site: SiteConfig) -> tuple[Manifest, list[Finding]]:
    """The rows on their sides, and what is to be said of these."""
    if not manifest.rows:
        return manifest, []
    try:
        found = foreseen(manifest, site.split, site.state_dir)
    except SiteDataError as error:
        return _without_sides(manifest), [Finding("stops", str(error))]
    return found, list(_uneven(found, site))


def _uneven(manifest: Manifest, site: SiteConfig) -> Iterator[Finding]:
    if isinstance(site.split, NoSplit):
        return
    counts = zip(manifest.classes, manifest.class_counts("train"), manifest.class_counts("test"), strict=True)
    lacking = [
        f"{name}: {'no image to train on' if test else 'no image to test on'} ({train + test} in all)"
        for name, train, test in counts
        if (train == 0) != (test == 0)
    ]
    if lacking:
        yield Finding("look", "classes that are on one side of the split only", tuple(lacking))
    if isinstance(site.split, ByImageSplit):
        on: dict[str, set[str | None]] = {}
        for row in manifest.rows:
            on.setdefault(_group(row), set()).add(row.split)
        torn = sum(len(sides) > 1 for sides in on.values())
        yield Finding(
            "look",
            f"split.kind is by_image: {torn} of {len(on)} patients or lesions are trained and tested on, so the test "
            "flatters; take grouped unless you compare with work that split so",
        )


def _without_sides(manifest: Manifest) -> Manifest:
    return replace(manifest, rows=tuple(replace(row, split=None) for row in manifest.rows))


def _room(num_images: int, site: SiteConfig, side: int) -> Iterator[Finding]:
    """Whether decoded images will fit, into memory or on the disk."""
    mib = _kept_mib(num_images, side)
    in_memory = mib <= site.cache.memory_mib
    if not in_memory and mib > site.cache.disk_mib:
        yield Finding(
            "stops",
            f"decoded images of {side} x {side} pixels need {mib:,.0f} MiB, more than cache.disk_mib="
            f"{site.cache.disk_mib} and cache.memory_mib={site.cache.memory_mib}; raise one of them in the site's YAML",
        )
        return
    if not in_memory and mib > (free_mib := _free_mib(site.state_dir)):
        yield Finding(
            "stops",
            f"decoded images need {mib:,.0f} MiB on the disk of state_dir, which has {free_mib:,.0f} MiB left; free "
            "some space there or choose another state_dir",
        )
    yield Finding(
        "fine",
        f"decoded images will take {mib:,.0f} MiB {'of memory' if in_memory else 'in a file under state_dir'}, "
        f"for an encoder that keeps {side} x {side} pixels",
    )


def _kept_mib(num_images: int, side: int) -> float:
    return num_images * side * side * 3 / 2**20


def _free_mib(state_dir: Path) -> float:
    """Free, or taken by decoded images of earlier studies, which make room."""
    home = next(path for path in (state_dir, *state_dir.parents) if path.is_dir())
    kept = sum(path.stat().st_size for path in (state_dir / "images").glob("*.rgb"))
    return (shutil.disk_usage(home).free + kept) / 2**20


def _summary(manifest: Manifest, seen: Sequence[Seen]) -> Finding:
    whole = [image for image in seen if not image.problem]
    counts = ", ".join(f"{n} {c}" for n, c in zip(manifest.classes, manifest.class_counts(), strict=True))
    sizes = [image.size for image in whole] or [(0, 0)]
    return Finding(
        "fine",
        f"{len(manifest.rows)} images of {len({_group(row) for row in manifest.rows})} patients or lesions ({counts}); "
        f"{len(manifest.on('train'))} train, {len(manifest.on('test'))} test; "
        f"{min(w for w, _ in sizes)} x {min(h for _, h in sizes)} to {max(w for w, _ in sizes)} x "
        f"{max(h for _, h in sizes)} pixels",
    )


def _speed(seen: Sequence[Seen], side: int, num_threads: int) -> Finding:
    decode_s = sum(image.decode_s for image in seen) / num_threads
    return Finding(
        "fine",
        f"decoding all images once, to {side} x {side} pixels, takes about {decode_s:,.0f} s with {num_threads} "
        "thread(s); later epochs take them from the cache",
    )


def _sides(manifest: Manifest) -> dict[str, str | None]:
    return {row.image.key: row.split for row in manifest.rows}


def _group(row: ImageRow) -> str:
    return f"group {row.group}" if row.group else f"image {row.image.key}"


def _where(image: Seen) -> str:
    return f"{image.row.source} ({image.row.image.name})"
