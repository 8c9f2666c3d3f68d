"""Partition of a data set on disk: the settings of simulated sites, and a list of images for each.

A site is the whole data set with a list of its own images (`readers/image_list.py`), so every kind of data is
read as before. The list also has the sides, so that studies of single sites, of all
together and of all images pooled (`--pooled`) choose by and test on the same images.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.config import (
    Columns,
    ColumnSplit,
    CsvData,
    DataConfig,
    DicomData,
    GroupedSplit,
    SplitConfig,
    load_site,
)
from client.data.manifest import ImageRow, Manifest, places, refuse
from client.data.readers import read
from client.data.readers.image_list import write_list
from client.data.readers.table import read_table
from client.data.simulation import site_counts
from client.data.simulation.discover import SITE_COLUMNS, FoundFederation, FoundSite, site_names
from client.data.simulation.partition import ByAcquisition, Partition, Piece, shared_out
from client.data.simulation.site_files import POOLED
from client.data.splitting.split import split
from common import log
from common.errors import ConfigError, SiteDataError
from common.files import write_atomically

PICTURE = "classes.png"


@dataclass(frozen=True)
class Source:
    """The data set that is to be shared out."""

    data: DataConfig
    split: SplitConfig
    state_dir: Path | None
    """Keeps the secret of hidden identifiers, if there is one."""


def source(path: Path, seed: int, column: str | None = None) -> Source:
    """The data set that a site's YAML or a labels.csv points at; `column` names a csv's acquisition.

    Raises ConfigError or SiteDataError.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        site = load_site(path)
        data_set = Source(site.data, site.split, site.state_dir)
    else:
        data_set = _from_csv(path.absolute(), seed)
    if column is None:
        return data_set
    if not isinstance(data_set.data, CsvData):
        raise ConfigError(
            f"--column={column} is for a csv; data.kind={data_set.data.kind} names each image's source itself. "
            "Leave --column out."
        )
    columns = data_set.data.columns.model_copy(update={"acquisition": column})
    return Source(data_set.data.model_copy(update={"columns": columns}), data_set.split, data_set.state_dir)


def _from_csv(path: Path, seed: int) -> Source:
    header = read_table(path).header

    def first(*names: str) -> str | None:
        return next((name for name in names if name in header), None)

    columns = Columns(
        image=first("file", "image") or "file",
        label=first("label", "dx") or "label",
        patient=first("patient_id", "patient"),
        lesion=first("lesion_id", "lesion"),
        group=first("group"),
        acquisition=first(*SITE_COLUMNS, "acquisition"),
        split=first("split"),
    )
    return Source(
        CsvData(labels=path, columns=columns),
        ColumnSplit() if columns.split else GroupedSplit(seed=seed),
        None,
    )


def partition(whole: Source, how: Partition, seed: int, classes: Sequence[str] | None) -> dict[str, Manifest]:
    """Every site's images, each on its side; sites by name. Raises SiteDataError.

    Without `classes`, those that the data has are taken.
    """
    names = tuple(classes) if classes is not None else read.labels(whole.data)
    manifest = read.read(whole.data, names, whole.state_dir)
    pieces = _pieces(manifest, hidden=isinstance(whole.data, DicomData))
    homes = shared_out(pieces, how, seed)
    if isinstance(how, ByAcquisition):
        _log_moved(pieces, homes)
        safe = site_names(Counter(homes))
        homes = [safe[name] for name in homes]
    sites: dict[str, Manifest] = {}
    problems = []
    for name in sorted(set(homes)):
        own = tuple(row for row, home in zip(manifest.rows, homes, strict=True) if home == name)
        try:
            sites[name] = split(Manifest(own, manifest.classes), whole.split)
        except SiteDataError as error:
            problems.append(f"{name}: {error}")
    if problems:
        refuse(
            "sites cannot be split into train and test",
            problems,
            "Make fewer sites, take another seed or a larger alpha, or say in the YAML how to split.",
        )
    return sites


def write(
    sites: dict[str, Manifest], whole: Source, out: Path, title: str
) -> tuple[FoundFederation, FoundSite]:
    """Lists and picture in OUT; the federation, and the site that holds all training and validation images.

    Raises StorageError.
    """
    found_sites = [
        _site(name, manifest.rows, whole.data, out, ColumnSplit()) for name, manifest in sites.items()
    ]  # fmt: skip
    not_tested = [row for manifest in sites.values() for row in manifest.rows if row.split != "test"]
    pooled = _site(POOLED, not_tested, whole.data, out, ColumnSplit())
    write_atomically(out / PICTURE, site_counts.picture(sites, title, out))
    classes = next(iter(sites.values())).classes
    has_groups = all(row.group is not None for manifest in sites.values() for row in manifest.rows)
    # No group is at two sites.
    return FoundFederation(classes, tuple(found_sites), has_groups, num_shared_groups=0), pooled


def _site(name: str, rows: Sequence[ImageRow], data: DataConfig, out: Path, sides: SplitConfig) -> FoundSite:
    path = (out / "lists" / f"{name}.csv").absolute()
    write_list(path, rows)
    return FoundSite(name, data.model_copy(update={"image_list": path}), sides, len(rows))


def _pieces(manifest: Manifest, *, hidden: bool) -> list[Piece]:
    """Images as they are dealt, under names that do not change with the place of the files or with a site's secret."""
    keys = places(manifest.rows)
    first: dict[str | None, str] = {}
    for row, key in zip(manifest.rows, keys, strict=True):
        first[row.group] = min(first.get(row.group, key), key)
    pieces = []
    for row, key in zip(manifest.rows, keys, strict=True):
        group = f"image {key}" if row.group is None else first[row.group] if hidden else row.group
        pieces.append(Piece(row.label, group, row.acquisition))
    return pieces


def _log_moved(pieces: Sequence[Piece], homes: Sequence[str]) -> None:
    moved = sum(piece.acquisition != home for piece, home in zip(pieces, homes, strict=True))
    if moved:
        log.event(
            f"{moved} image(s) are with the rest of their patient or lesion rather than where they were made",
            moved=moved,
        )
