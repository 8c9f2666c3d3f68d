"""Split of a site's images into training, validation and test images, with whole groups on one side.

Images of one lesion (or patient) look alike: with one on each side, a test measures memory.
So whole groups move, the classes keep their shares as far as groups allow (`client/data/splitting/stratify.py`),
and a split that comes with the data is refused if it puts one group on two sides.

The test images are drawn first, and the validation images from the rest. So the share of validation images does not
change the test images.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import assert_never, get_args

from client.config import ByImageSplit, ColumnSplit, GroupedSplit, KFoldSplit, NoSplit, SplitConfig
from client.data.manifest import SIDES, ImageRow, Manifest, Side, places, refuse
from client.data.readers.table import read_table
from client.data.splitting.stratify import deal, deal_alone
from common.errors import SiteDataError
from common.files import write_atomically
from common.log import event, warn

GROUP_COLUMNS = ("patient_id", "lesion_id", "group", "patient")
"""Usual names of the column that says which images are of one patient or lesion. The coarser one first: a patient may
have several lesions.
"""


def split(manifest: Manifest, config: SplitConfig) -> Manifest:
    """The same rows, each on a side. Raises SiteDataError if no split keeps groups together."""
    return with_validation(tested(manifest, config), config)


def tested(manifest: Manifest, config: SplitConfig) -> Manifest:
    """The same rows, each on a side: the test images are settled, validation images are only those that came with
    the data. Raises SiteDataError if no split keeps groups together.
    """
    match config:
        case GroupedSplit(test_share=share):
            sides = _drawn(manifest, (1 - share, share), 1, config)
        case KFoldSplit(folds=folds, fold=fold):
            sides = _drawn(manifest, (1 / folds,) * folds, fold, config)
        case ByImageSplit():
            return _by_image(manifest, config)
        case ColumnSplit():
            sides = _given(manifest)
        case NoSplit():
            sides = [config.all] * len(manifest.rows)
        case _:
            assert_never(config)
    rows = tuple(replace(row, split=side) for row, side in zip(manifest.rows, sides, strict=True))
    _no_group_on_two_sides(rows)
    return replace(manifest, rows=rows)


def with_validation(manifest: Manifest, config: SplitConfig) -> Manifest:
    """`manifest`, on sides already, with validation images drawn from its training images.

    A site with too few patients or lesions for it has no validation images, and is warned.
    """
    if config.validation == 0 or manifest.on("validation") or not manifest.on("train"):
        return manifest
    training = [number for number, row in enumerate(manifest.rows) if row.split == "train"]
    rows = [manifest.rows[number] for number in training]
    is_by_image = config.kind == "by_image"
    owners = [
        _owner(None if is_by_image else row.group, key) for row, key in zip(rows, places(rows), strict=True)
    ]
    labels = [row.label for row in rows]
    shares = (1 - config.validation, config.validation)
    if config.stratified:
        bins = deal(labels, owners, dict.fromkeys(labels, shares), config.seed)
    else:
        bins = deal_alone(owners, shares, config.seed, "validation")
    drawn = {number for number, place in zip(training, bins, strict=True) if place == 1}
    if not drawn or len(drawn) == len(training):
        warn(
            f"no validation images: {len(rows)} training image(s) of {len(set(owners))} group(s) are too few for a "
            f"share of {config.validation:g}; the study chooses by other sites' images"
        )
        return manifest
    sides: list[Side] = ["validation" if number in drawn else "train" for number in training]
    placed = dict(zip(training, sides, strict=True))
    return replace(
        manifest,
        rows=tuple(
            replace(row, split=placed.get(number, row.split)) for number, row in enumerate(manifest.rows)
        ),
    )


def draw(strata: Sequence[str], groups: Sequence[str], test_share: float, seed: int) -> list[Side]:
    """A side for each image: whole groups, each stratum shared out alike.

    Raises SiteDataError if one side would stay empty.
    """
    return _dealt(strata, groups, (1 - test_share, test_share), 1, seed)


def _dealt(
    strata: Sequence[str],
    groups: Sequence[str],
    shares: Sequence[float],
    test: int,
    seed: int,
    stratified: bool = True,
) -> list[Side]:
    """A side for each image: whole groups are dealt into bins of these shares, and one bin is for testing."""
    test_share, num_groups = shares[test], len(set(groups))
    needed = round(1 / test_share)
    if num_groups < needed:
        raise SiteDataError(
            f"found {len(groups)} image(s) of {num_groups} group(s); a test share of {test_share:g} needs "
            f"at least {needed} groups. Add images, or set `split: {{kind: none, all: train}}` "
            "and test elsewhere."
        )
    if stratified and max(Counter(strata).values()) < needed:
        raise SiteDataError(
            f"no split by class is possible: each class has fewer than {needed} images "
            f"({_counted(strata)}), which a test share of {test_share:g} needs. Add images, or set "
            "`split: {kind: none, all: train}` and test elsewhere."
        )
    if stratified:
        bins = deal(strata, groups, dict.fromkeys(strata, shares), seed)
    else:
        bins = deal_alone(groups, shares, seed, "test")
    if not 0 < bins.count(test) < len(bins):
        raise SiteDataError(
            f"no split is possible: the {num_groups} groups of {len(groups)} images are too uneven for a "
            f"test share of {test_share:g} ({_counted(groups)}). Use another seed, or add images."
        )
    return ["test" if place == test else "train" for place in bins]


def write_split(
    labels_csv: Path,
    out_csv: Path,
    *,
    label: str = "label",
    group: str | None = None,
    strata: Sequence[str] = (),
    test_share: float = 0.2,
    validation: float = 0.15,
    seed: int = 0,
) -> str | None:
    """Copy a csv with a `split` column added: by label and `strata` (e.g. site), whole groups.

    One split for all sites lets local, pooled and federated studies choose and test on the same images.
    `validation` is a share of the images that are not for testing; 0: none. Without a `group`, the first of
    `GROUP_COLUMNS` that the table has is taken. Returns the column whose groups were kept together, None without one.
    Image files in `out_csv` stay as they are, relative to where `labels_csv` lies.
    """
    table = read_table(labels_csv)
    group = group or next((name for name in GROUP_COLUMNS if name in table.header), None)
    wanted = [label, *strata, *([group] if group else [])]
    missing = [name for name in wanted if name not in table.header]
    problems = [f"no column {name!r}; it has {', '.join(table.header)}" for name in missing]
    if "split" in table.header:
        problems.append("it has a column `split` already; use that, or remove it")
    if problems or table.problems:
        refuse(
            f"{labels_csv.name} cannot be split",
            [*problems, *table.problems],
            f"Correct {labels_csv} or name its columns.",
        )
    cells = [row for _, row in table.rows]
    keys = ["/".join(row.get(name, "") for name in (label, *strata)) for row in cells]
    owners = [_owner(row.get(group, "") if group else None, str(i)) for i, row in enumerate(cells)]
    sides = draw(keys, owners, test_share, seed)
    if validation:
        training = [number for number, side in enumerate(sides) if side == "train"]
        strata_of = [keys[number] for number in training]
        shares = dict.fromkeys(strata_of, (1 - validation, validation))
        bins = deal(strata_of, [owners[number] for number in training], shares, seed)
        for number, place in zip(training, bins, strict=True):
            sides[number] = "validation" if place == 1 else "train"
    text = StringIO(newline="")
    writer = csv.writer(text, delimiter=table.delimiter, lineterminator="\n")
    writer.writerow([*table.header, "split"])
    for row, side in zip(cells, sides, strict=True):
        writer.writerow([*(row.get(name, "") for name in table.header), side])
    write_atomically(out_csv, text.getvalue().encode(errors="surrogateescape"))
    return group


# --- the kinds of split --------------------------------------------------------------------


def _by_image(manifest: Manifest, config: ByImageSplit) -> Manifest:
    images, share = places(manifest.rows), config.test_share
    labels = [row.label for row in manifest.rows]
    sides = _dealt(labels, images, (1 - share, share), 1, config.seed, config.stratified)
    on: dict[str, set[str]] = {}
    for row, side in zip(manifest.rows, sides, strict=True):
        on.setdefault(_owner(row.group, row.image.key), set()).add(side)
    num_on_both = sum(len(sides) > 1 for sides in on.values())
    warn(
        f"split.kind is by_image: {num_on_both} of {len(on)} lesions or patients are on both sides, so the test is too "
        "optimistic; use it only to compare with work that split so",
        torn=num_on_both,
    )
    rows = tuple(replace(row, split=side) for row, side in zip(manifest.rows, sides, strict=True))
    return replace(manifest, rows=rows)


def _drawn(
    manifest: Manifest, shares: Sequence[float], test: int, config: GroupedSplit | KFoldSplit
) -> list[Side]:
    rows = manifest.rows
    if any(row.split for row in rows):
        event("the sides that the data names are not used: the split is drawn")
    alone = sum(row.group is None for row in rows)
    if alone:
        warn(
            f"{alone} of {len(rows)} images name no group and count as a group each; "
            "if a lesion or patient has several images, name it by data.columns.patient of a csv or "
            "data.group.pattern of folders",
            without_group=alone,
        )
    owners = [_owner(row.group, place) for row, place in zip(rows, places(rows), strict=True)]
    labels = [row.label for row in rows]
    sides = _dealt(labels, owners, shares, test, config.seed, config.stratified)
    for name in manifest.classes:
        on = Counter(side for row, side in zip(rows, sides, strict=True) if row.label == name)
        if len(on) == 1:
            side, count = on.popitem()
            groups = len({owner for row, owner in zip(rows, owners, strict=True) if row.label == name})
            warn(f"class {name} has {groups} group(s), too few to divide: its {count} image(s) all {side}")
    return sides


def _given(manifest: Manifest) -> list[Side]:
    wrong = Counter(row.split or "" for row in manifest.rows if (row.split or "").lower() not in SIDES)
    if wrong:
        first = next(row for row in manifest.rows if (row.split or "").lower() not in SIDES)
        refuse(
            "the split that comes with the data cannot be used",
            [f"{value!r} in {count} row(s)" for value, count in wrong.most_common()],
            f"Expected train, validation or test, first missing in {first.source}. "
            "Correct these, or let `split: {kind: grouped}` draw one.",
        )
    return [SIDES[(row.split or "").lower()] for row in manifest.rows]


def groups_on_both_sides(rows: Sequence[ImageRow]) -> list[str]:
    """Groups with images on more than one side."""
    sides: dict[str, set[str | None]] = {}
    for row in rows:
        if row.group is not None:
            sides.setdefault(row.group, set()).add(row.split)
    return [group for group, on in sides.items() if len(on) > 1]


def _no_group_on_two_sides(rows: Sequence[ImageRow]) -> None:
    if on_both := groups_on_both_sides(rows):
        refuse(
            "the split puts images of one group on two sides, so a test would measure memory",
            [f"group {group} is in {' and in '.join(_sides_of(rows, group))}" for group in on_both],
            f"{len(on_both)} of {len({row.group for row in rows} - {None})} groups are on two sides. "
            "Correct the split, or let `split: {kind: grouped}` draw one.",
        )


def _sides_of(rows: Sequence[ImageRow], group: str) -> list[Side]:
    on = {row.split for row in rows if row.group == group}
    return [side for side in get_args(Side) if side in on]


def _owner(group: str | None, image: str) -> str:
    # Two name spaces: a lesion may be called like another image.
    return f"group {group}" if group else f"image {image}"


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common(10))
