"""Findings about the data set as a whole: its classes, its groups, and its split."""

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import assert_never

from client.config import (
    BrainMriData,
    BratsData,
    ByImageSplit,
    ColumnSplit,
    CsvData,
    DataConfig,
    DicomData,
    FedIsic2019Data,
    FoldersData,
    Ham10000Data,
    IsicData,
    MedMnistData,
    NoSplit,
    SiteConfig,
)
from client.data.manifest import Manifest
from client.data.readers.patients import spelling
from client.data.splitting.kept_split import foreseen
from client.preflight.findings import Finding
from common import log
from common.errors import SiteDataError

LARGE_SHARE, LARGE_TIMES = 0.2, 3
"""Of all images, and times the usual number; a patient with more than both may be many patients under one name."""
_BETWEEN_WORDS = re.compile(r"[\s_-]+")
FEW_GROUPS = 5
"""Patients or lesions of a class; a test on fewer says little."""


def of_classes(manifest: Manifest, data: DataConfig) -> Iterator[Finding]:
    """Classes with few images or none, and images without a patient or lesion."""
    groups: dict[str, set[str]] = {name: set() for name in manifest.classes}
    for row in manifest.rows:
        groups[row.label].add(row.group_key)
    few = [f"{name}: {len(keys)}" for name, keys in groups.items() if 0 < len(keys) < FEW_GROUPS]
    if few:
        text = f"classes with fewer than {FEW_GROUPS} patients or lesions; a test on them says little"
        yield Finding("look", text, tuple(few))
    none = [name for name, keys in groups.items() if not keys]
    if none:
        yield Finding(
            "look", "classes of the study without an image here; other sites may have them", tuple(none)
        )
    yield from _names(manifest)
    yield from _groups(manifest, data)


def _names(manifest: Manifest) -> Iterator[Finding]:
    """Classes that look like one, and a single class."""
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for name in manifest.classes:
        letters = _BETWEEN_WORDS.sub("", spelling(name))
        spellings[letters if any(map(str.isalpha, letters)) else spelling(name)].append(name)
    alike = tuple(" = ".join(names) for names in spellings.values() if len(names) > 1)
    if alike:
        yield Finding(
            "look",
            "classes whose names differ in large letters, blanks, hyphens or zeros only; if they are one, correct the "
            "data or name them in data.label_map of the site's YAML",
            alike,
        )
    if len(manifest.classes) == 1 and manifest.rows:
        yield Finding(
            "look",
            f"all images are of one class, {manifest.classes[0]}; a study has two at least. For `kind: folders` "
            "data.root may lie one folder too high",
        )


def _groups(manifest: Manifest, data: DataConfig) -> Iterator[Finding]:
    """Images without a patient or lesion, and the patient or lesion with the most images."""
    rows = manifest.rows
    ungrouped = sum(row.group is None for row in rows)
    if ungrouped:
        yield Finding(
            "look",
            f"{ungrouped} of {len(rows)} images ({ungrouped / len(rows):.0%}) name no patient or lesion: if one has "
            f"several images, they may be trained and tested on; {_remedy(data)}",
        )
    sizes = Counter(row.group for row in rows if row.group is not None)
    if not sizes:
        return
    (group, largest), *_ = sizes.most_common(1)
    first = next(row for row in rows if row.group == group)
    text = (
        f"the patient or lesion with the most images has {largest} of {len(rows)} ({largest / len(rows):.0%}), that of "
        f"{first.source}"
    )
    if largest > max(LARGE_SHARE * len(rows), LARGE_TIMES * statistics.median(sizes.values())):
        yield Finding("look", f"{text}; is it one patient, or a value that stands for many?")
    else:
        yield Finding("fine", text)


def _remedy(data: DataConfig) -> str:
    """How the site can say which images belong together."""
    match data:
        case CsvData():
            return "name the column in the site's YAML (data.columns.patient), or fill it"
        case FoldersData():
            return "say in the site's YAML how the path names it (data.group.pattern)"
        case IsicData() | FedIsic2019Data() if data.metadata is None:
            return "name the challenge's metadata in the site's YAML (data.metadata), which has the lesions"
        case Ham10000Data() | IsicData() | FedIsic2019Data():
            return "the published table names no lesion for them"
        case DicomData():
            return "their PatientID is empty or a placeholder, and so is their StudyInstanceUID"
        case BrainMriData() | MedMnistData() | BratsData():
            return "the published set does not name any"
        case _:
            assert_never(data)


def on_sides(manifest: Manifest, site: SiteConfig) -> tuple[Manifest, list[Finding]]:
    """The manifest with the split that a study would use, and findings about it; without sides if there is none."""
    if not manifest.rows:
        return manifest, []
    try:
        with log.muted():  # what it would warn of is among the findings
            split = foreseen(manifest, site.split, site.state_dir)
    except SiteDataError as error:
        return _without_sides(manifest), [Finding("stops", str(error))]
    return split, [*_unused_sides(manifest, site), *_uneven(split, site)]


def _unused_sides(manifest: Manifest, site: SiteConfig) -> Iterator[Finding]:
    """Sides that folders, a table or an archive state, where the settings draw others."""
    stated = Counter(row.split for row in manifest.rows if row.split is not None)
    if stated and not isinstance(site.split, ColumnSplit | NoSplit):
        sides = ", ".join(f"{side} {count}" for side, count in sorted(stated.items()))
        yield Finding(
            "look",
            f"the data state a side of the split for {stated.total()} of {len(manifest.rows)} images ({sides}), and "
            f"`split.kind: {site.split.kind}` does not use it; take `column` to keep the published split",
        )


def _uneven(manifest: Manifest, site: SiteConfig) -> Iterator[Finding]:
    if manifest.on("train") and not manifest.on("validation"):
        yield Finding(
            "look",
            "no validation images: this site has no part in what a study chooses, nor in the scores over its rounds; "
            "`split.validation` in the site's YAML says how many there are to be",
        )
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
        sides_by_group: dict[str, set[str | None]] = {}
        for row in manifest.rows:
            sides_by_group.setdefault(row.group_key, set()).add(row.split)
        num_on_both = sum(len(sides) > 1 for sides in sides_by_group.values())
        yield Finding(
            "look",
            f"split.kind is by_image: {num_on_both} of {len(sides_by_group)} patients or lesions are trained "
            "and tested on, so test scores are too high; take grouped unless you compare with work that split so",
        )


def _without_sides(manifest: Manifest) -> Manifest:
    return replace(manifest, rows=tuple(replace(row, split=None) for row in manifest.rows))
