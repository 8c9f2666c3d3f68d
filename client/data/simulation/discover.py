"""Discovery of a federation in one folder: its sites, and where the images of each are.

For simulation on one machine, where all hospitals' images are in one place.
Two layouts are understood, because nearly every public data set has one of them or is one
command away: a labels.csv with a site column, or one folder per site with one per class.
Only names are read; each site checks by itself whether its images can be used.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from client.config import (
    Columns,
    ColumnSplit,
    CsvData,
    DataConfig,
    FoldersData,
    GroupedSplit,
    RowFilter,
    SplitConfig,
)
from client.data.manifest import refuse
from client.data.readers.folders import read_folders
from client.data.readers.rows import Unused
from client.data.readers.scan import beside_folders, folders_in, merged
from client.data.readers.table import CsvTable, read_table
from client.data.splitting.split import GROUP_COLUMNS
from common.errors import SiteDataError

SITE_COLUMNS = ("site", "domain", "centre", "center")

_EXPECTED = (
    "Expected labels.csv with the columns file, label and one of "
    f"{', '.join(SITE_COLUMNS)}, or one folder per site with one folder per class in it."
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class FoundSite:
    """Contents of one site's YAML; paths are absolute."""

    name: str
    data: DataConfig
    split: SplitConfig
    num_images: int


@dataclass(frozen=True)
class FoundFederation:
    """Sites and classes, each sorted by name."""

    classes: tuple[str, ...]
    sites: tuple[FoundSite, ...]
    has_groups: bool
    """False: a split cannot keep images of one lesion or patient together."""
    num_shared_groups: int
    """Lesions or patients with images at several sites (HAM10000 has nine). Splits that each site
    draws by itself may test at one site what another trained on; `split.write_split` draws one for all."""
    class_images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Images by site and class, of data sets that were joined; empty: not counted, because only names were read."""


def discover(data_dir: Path) -> FoundFederation:
    """The federation that lies in `data_dir`. Raises SiteDataError that says what the folder holds."""
    folder = data_dir.absolute()
    if not folder.is_dir():
        raise SiteDataError(f"{data_dir} is not a folder. {_EXPECTED}")
    labels = folder / "labels.csv"
    return _from_csv(read_table(labels)) if labels.is_file() else _from_folders(folder)


def _from_csv(table: CsvTable) -> FoundFederation:
    site = next((name for name in SITE_COLUMNS if name in table.header), None)
    if site is None or "file" not in table.header or "label" not in table.header:
        _refuse(f"{table.path} has the columns {', '.join(table.header)}.")
    group = next((name for name in GROUP_COLUMNS if name in table.header), None)
    split = "split" if "split" in table.header else None
    rows = [cells for _, cells in table.rows]
    unplaced = sum(not (cells.get(site) and cells.get("label")) for cells in rows)
    if unplaced:
        _refuse(f"{table.path} has {unplaced} row(s) without a {site} or without a label.")
    counts = Counter(cells[site] for cells in rows)
    columns = Columns(group=group, split=split)
    names = site_names(counts)
    return _federation(
        classes={cells["label"] for cells in rows},
        sites=[
            FoundSite(
                names[value],
                CsvData(
                    labels=table.path, columns=columns, row_filter=RowFilter(column=site, values=(value,))
                ),
                ColumnSplit() if split else GroupedSplit(),
                counts[value],
            )
            for value in counts
        ],
        where=str(table.path),
        has_groups=group is not None,
        num_shared_groups=_shared(rows, group, site) if group else 0,
    )


def _from_folders(folder: Path) -> FoundFederation:
    classes: set[str] = set()
    sites = []
    parts = [("", beside_folders(folder))]
    problems: list[str] = []
    names = site_names([path.name for path in folders_in(folder)])
    for root in folders_in(folder):
        contents = read_folders(FoldersData(root=root))
        parts.append((root.name, contents.unused))
        problems += [f"{root.name}: {problem}" for problem in contents.problems]
        if not contents.rows:
            parts.append(("", [Unused("folders without an image in a class folder", (root.name,))]))
            continue
        classes |= {row.label for row in contents.rows}
        split = GroupedSplit() if contents.rows[0].split is None else ColumnSplit()
        sites.append(FoundSite(names[root.name], FoldersData(root=root), split, len(contents.rows)))
    if problems:
        refuse(f"{folder} is no federation", problems, "Correct the folders, then start again.")
    for unused in merged(parts):
        unused.log()
    if not sites:
        inside = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
        shown = ", ".join(inside[:10]) + (", ..." if len(inside) > 10 else "")
        _refuse(f"{folder} holds {shown or 'nothing'}.")
    return _federation(classes, sites, where=str(folder))


def _shared(rows: Sequence[Mapping[str, str]], group: str, site: str) -> int:
    homes: dict[str, set[str]] = {}
    for cells in rows:
        homes.setdefault(cells.get(group, ""), set()).add(cells[site])
    return sum(len(sites) > 1 for name, sites in homes.items() if name)


def _federation(
    classes: set[str],
    sites: Sequence[FoundSite],
    where: str,
    has_groups: bool = False,
    num_shared_groups: int = 0,
) -> FoundFederation:
    odd = sorted(name for name in classes if not _NAME.fullmatch(name))
    if odd:
        raise SiteDataError(
            f"{where} has the class name(s) {', '.join(map(repr, odd[:5]))}; expected letters, digits, "
            "`_`, `.` and `-` only. Rename them."
        )
    if len(classes) < 2:
        _refuse(f"{where} has {len(classes)} class(es) ({', '.join(sorted(classes))}); two are needed.")
    return FoundFederation(
        tuple(sorted(classes)),
        tuple(sorted(sites, key=lambda site: site.name)),
        has_groups,
        num_shared_groups,
    )


def site_names(values: Sequence[str] | Mapping[str, int]) -> dict[str, str]:
    """A name that is safe in file names for each value; two that become the same are an error."""
    names = {value: re.sub(r"[^A-Za-z0-9_.-]+", "-", value).strip("-._")[:63] or "site" for value in values}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        same = [value for value, name in names.items() if name == twice[0]]
        raise SiteDataError(
            f"the sites {', '.join(map(repr, same))} would share one name; rename one of them"
        )
    return names


def _refuse(contents: str) -> NoReturn:
    raise SiteDataError(f"{contents} {_EXPECTED}")
