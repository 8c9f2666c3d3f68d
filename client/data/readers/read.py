"""Reading of a site's data into a manifest, with every check that needs no decoding.

A data manager repairs a data set in one go or loses a day, so every reader collects all problems and
reports them at once. The same checks follow here for every kind of data.
"""

import difflib
import os
import secrets
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from client.config import (
    BrainMriData,
    BratsData,
    CsvData,
    DataConfig,
    DicomData,
    FedIsic2019Data,
    FoldersData,
    Ham10000Data,
    IsicData,
    MedMnistData,
)
from client.data.manifest import ImageRow, Manifest, grouped, refuse
from client.data.pseudonyms import site_secret
from client.data.readers.brain_mri import read_brain_mri
from client.data.readers.brats import read_brats
from client.data.readers.csv_table import read_csv
from client.data.readers.dicom import read_dicom
from client.data.readers.folders import read_folders
from client.data.readers.ham10000 import read_ham10000
from client.data.readers.image_list import listed
from client.data.readers.isic import read_fed_isic, read_isic
from client.data.readers.medmnist import read_medmnist
from client.data.readers.rows import ReadRows, Unused, by_kind
from common.errors import SiteDataError
from common.log import warn


@dataclass(frozen=True)
class Survey:
    """Contents of a site's data: the usable rows, and the problems of the others."""

    where: Path
    manifest: Manifest
    """May be empty."""
    problems: tuple[str, ...]
    num_repeats: int
    """Rows that repeat another row."""
    unused: tuple[Unused, ...] = ()
    """What lies in the data set and is not used."""


def survey(config: DataConfig, classes: Sequence[str] | None, state_dir: Path | None = None) -> Survey:
    """All rows that `config` points at, and all problems; without `classes`, those that the data has.

    `state_dir` keeps the secret that hides patients' identifiers; without it, names of groups are
    good for this one manifest. Raises SiteDataError if nothing can be read.
    """
    where, (rows, problems, unused) = _rows(config, state_dir)
    names = _labels(rows, config) if classes is None else tuple(classes)
    all_rows = rows
    rows, left_out = _mapped(all_rows, config, names)
    unique = _without_repeats(rows)
    usable = [row for row in unique.rows if row.label in names]
    problems = [*_unknown_classes(rows, names), *problems, *unique.problems]
    return Survey(
        where,
        Manifest(tuple(grouped(usable)), names),
        tuple(problems),
        unique.num_repeats,
        (*unused, *left_out, *_unused_names(config, all_rows)),
    )


def read(config: DataConfig, classes: Sequence[str], state_dir: Path | None = None) -> Manifest:
    """All images that `config` points at. Raises SiteDataError that lists every problem."""
    contents = survey(config, classes, state_dir)
    where = contents.where
    if contents.problems:
        refuse(
            f"{where.name} cannot be used as it is",
            contents.problems,
            f"Correct {where} or the images it names, then start again.",
        )
    if not contents.manifest.rows:
        raise SiteDataError(no_images(contents))
    if contents.num_repeats:
        warn(f"{contents.num_repeats} row(s) repeat another row and count once", repeats=contents.num_repeats)
    for unused in contents.unused:
        unused.log()
    return contents.manifest


def no_images(contents: Survey) -> str:
    """Error message for a site without a single image."""
    classes = ", ".join(contents.manifest.classes) or "(none)"
    there = "; ".join(unused.text for unused in contents.unused)
    return (
        f"{contents.where} holds no image of any class; the study has the classes {classes}. "
        + (f"There: {there}. " if there else "")
        + "Point `data` of the site's YAML at images of these classes."
    )


def labels(config: DataConfig) -> tuple[str, ...]:
    """The classes that the data has, under the study's names, in alphabetical order. Raises SiteDataError."""
    return _labels(_rows(config, None)[1].rows, config)


def _labels(rows: Sequence[ImageRow], config: DataConfig) -> tuple[str, ...]:
    label_map = _label_map(config)
    mapped = (label_map.get(row.label, row.label) for row in rows)
    return tuple(sorted({name for name in mapped if name}))


def _label_map(config: DataConfig) -> dict[str, str | None]:
    """Names of the data with accents as `_rows` has them: joined with their letters."""
    return {unicodedata.normalize("NFC", name): label for name, label in config.label_map.items()}


def _rows(config: DataConfig, state_dir: Path | None) -> tuple[Path, ReadRows]:
    """Where the rows are from, and what the reader made of it. Raises SiteDataError."""
    try:
        where, contents = _remembered_rows(config, state_dir)
    except OSError as error:
        raise SiteDataError(
            f"{error.filename or 'a file or folder of the data set'} cannot be read: {error.strerror}. Let the "
            "trainer read the whole data set, then start again."
        ) from error
    if config.image_list is None:
        return where, contents
    rows, not_in_data = listed(contents.rows, config.image_list)
    # The rest of the data set is other sites', so it is not for this one to say what else is not used.
    taken = {row.image.key for row in rows}
    others = tuple(row.source for row in contents.rows if row.image.key not in taken)
    left = [Unused(f"images that {config.image_list.name} leaves to other sites", others, is_usual=True)]
    notes = _about({row.source for row in rows}, contents.unused)
    return where, ReadRows(rows, [*contents.problems, *not_in_data], [*notes, *(left if others else [])])


def _about(sources: Set[str], unused: Sequence[Unused]) -> Iterator[Unused]:
    """What a reader says of rows from these sources, such as patients that no cell names."""
    for one in unused:
        if own := tuple(name for name in one.names if name in sources):
            yield replace(one, names=own)


@contextmanager
def reading_once() -> Iterator[None]:
    """Within it, a data set that lists of several sites choose from is read for the first of them alone.

    For simulated sites in one process, whose data stay as they are: a table of 10,000 rows takes seconds to look up.
    """
    token = _READ.set(_KEPT)
    try:
        yield
    finally:
        _READ.reset(token)


_KEPT: dict[str, tuple[Path, ReadRows]] = {}
_READ: ContextVar[dict[str, tuple[Path, ReadRows]] | None] = ContextVar(
    "data sets that were read", default=None
)


def _remembered_rows(config: DataConfig, state_dir: Path | None) -> tuple[Path, ReadRows]:
    known = _READ.get()
    if known is None or config.image_list is None:
        return _all_rows(config, state_dir)
    # A DICOM's patients have other names at each site.
    secret = state_dir if isinstance(config, DicomData) else None
    key = f"{config.model_copy(update={'image_list': None})!r} {secret}"
    if key not in known:
        known[key] = _all_rows(config, state_dir)
    return known[key]


def _all_rows(config: DataConfig, state_dir: Path | None) -> tuple[Path, ReadRows]:
    match config:
        case CsvData():
            return config.labels, read_csv(config)
        case FoldersData():
            return config.root, read_folders(config)
        case Ham10000Data():
            return config.metadata, read_ham10000(config)
        case IsicData():
            return config.ground_truth, read_isic(config)
        case FedIsic2019Data():
            return config.split_file, read_fed_isic(config)
        case BratsData():
            return config.root, read_brats(config)
        case BrainMriData():
            return config.root, read_brain_mri(config)
        case DicomData():
            secret = secrets.token_bytes() if state_dir is None else site_secret(state_dir)
            return config.labels, read_dicom(config, secret)
        case MedMnistData():
            return config.archive, read_medmnist(config)
        case _:
            assert_never(config)


def _mapped(
    rows: Sequence[ImageRow], config: DataConfig, classes: Sequence[str]
) -> tuple[list[ImageRow], list[Unused]]:
    """Rows under the study's class names, and those that the site leaves out."""
    kept, dropped = [], defaultdict[str, list[str]](list)
    label_map = _label_map(config)
    for row in rows:
        label = label_map.get(row.label, row.label)
        if label is None or (label not in classes and config.unknown_labels == "drop"):
            dropped[f"images of {row.label}, which the site's YAML leaves out"].append(row.source)
        else:
            kept.append(replace(row, label=label))
    return kept, list(by_kind(dropped))


def _unused_names(config: DataConfig, rows: Sequence[ImageRow]) -> list[Unused]:
    """Names in the label map that no image has: one of them may be misspelt."""
    there = {row.label for row in rows}
    names = tuple(sorted(name for name in _label_map(config) if name not in there))
    return [Unused("names in data.label_map that no image has", names, is_usual=True)] if names else []


def _unknown_classes(rows: Sequence[ImageRow], classes: Sequence[str]) -> Iterator[str]:
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.label, row.source)
    for label, count in Counter(row.label for row in rows).items():
        if label not in classes:
            guess = _nearest(label, classes)
            yield (
                f"{first[label]}: class {label!r} is not in the study ({count} image(s)), "
                f"which has {', '.join(classes)}" + (f"; did you mean {guess}?" if guess else "")
            )


def _nearest(label: str, classes: Sequence[str]) -> str | None:
    folded = {name.casefold(): name for name in classes}
    close = difflib.get_close_matches(label.casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


@dataclass(frozen=True)
class _Unique:
    rows: tuple[ImageRow, ...]
    num_repeats: int
    problems: tuple[str, ...]


def _without_repeats(rows: Sequence[ImageRow]) -> _Unique:
    """Each file once; a file with two different labels, groups or sides is a problem."""
    kept: dict[str, ImageRow] = {}
    problems = []
    for row in rows:
        earlier = kept.setdefault(os.path.normcase(os.path.normpath(row.image.key)), row)
        for field in ("label", "patient", "lesion", "group", "split", "attributes"):
            before, now = getattr(earlier, field), getattr(row, field)
            if before != now:
                problems.append(
                    f"{row.source}: {row.image.name} has {field} {now!r}, but {before!r} in {earlier.source}"
                )
    return _Unique(tuple(kept.values()), len(rows) - len(kept), tuple(problems))
