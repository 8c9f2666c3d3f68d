"""Settings files of a simulated federation: one YAML per site, and one that lists the sites.

Only for simulation on one machine: a real hospital writes its own YAML. `federation.yaml`
names to the simulating server the sites, the classes and whether the images are synthetic,
which at real institutions the study operator knows.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from client.config import ColumnSplit, CsvData, GroupedSplit, NoSplit, PolicyConfig, RowFilter, SiteConfig
from client.data.manifest import SIDES
from client.data.readers.table import read_table
from client.data.simulation.discover import FoundFederation, FoundSite
from common import log
from common.config import StudyConfig
from common.config.heads import LocalKind
from common.errors import SiteDataError, StorageError
from common.files import write_atomically
from common.masking import roster
from common.settings import to_yaml

OVERLAP_SECRET, ROSTER = Path("overlap.secret"), Path("mask.roster")
"""Beside the YAMLs, which name them relative to themselves."""
POOLED = "pooled"
"""Name of the site that holds every site's training images: centralised training."""
STATE_IN_CONTAINER, SOCKET_IN_CONTAINER = Path("/state"), Path("/link/trainer.sock")
"""Where a trainer's container has them: see Dockerfile.gpu."""
SIMULATED = PolicyConfig(
    heads=("*",),
    heads_may_leave=get_args(LocalKind),
    hub_weights=True,
    own_first_weights=False,
    histogram_bins=500,
)
"""A simulation has no operator to be protected from: every study runs, and scores are exact."""


def write_sites(
    federation: FoundFederation,
    out: Path,
    *,
    synthetic: bool,
    weights: Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    pooled: FoundSite | None = None,
    containers: int | None = None,
    study: StudyConfig | None = None,
) -> None:
    """Write OUT/NAME.yaml per site, `pooled` among them, and OUT/federation.yaml.

    Sites that `study` names under `evaluate` test on every image that they have.

    `containers` says for how many sites there are containers; their settings are then 1.yaml, 2.yaml, and
    so on, by the order of names, because a compose file is written before the images are read.
    Raises StorageError, SiteDataError, and ConfigError if a site's key for secure aggregation is damaged.
    """
    all_sites = [*federation.sites, *([pooled] if pooled else [])]
    if study is not None:
        all_sites = _in_their_roles(all_sites, study, federation.num_shared_groups)
    sites = {site.name: _settings(site, out, weights, threads, seed) for site in all_sites}
    sites = _in_containers(sites, containers) if containers is not None else _with_roster(sites, out)
    _write_overlap_secret(out / OVERLAP_SECRET)
    for name, settings in sites.items():
        write_atomically(out / f"{name}.yaml", to_yaml(settings.model_dump(mode="json", exclude_none=True)))
    about: dict[str, Any] = {
        "synthetic": synthetic,
        "classes": list(federation.classes),
        "sites": {site.name: site.num_images for site in federation.sites},
    }
    if federation.class_images:
        about["class_images"] = {site: dict(counts) for site, counts in federation.class_images.items()}
    write_atomically(out / "federation.yaml", to_yaml(about))
    if not federation.has_groups:
        log.warn("no column names the lesion or patient: images of one lesion may stand in train and test")
    log.event(f"wrote the settings of {', '.join(site.name for site in all_sites)} to {out}")


def _in_their_roles(
    sites: Sequence[FoundSite], study: StudyConfig, num_shared_groups: int
) -> list[FoundSite]:
    """The sites, those that only score with every image on the test side. Raises SiteDataError."""
    names = [site.name for site in sites]
    if missing := [name for name in study.sites.all if name not in names]:
        raise SiteDataError(
            f"study {study.name} names {', '.join(missing)}, the images are of {', '.join(names)}; change "
            "sites.train and sites.evaluate, or rename the sites of the images"
        )
    if strange := [name for name in names if name not in study.sites.all]:
        log.warn(f"study {study.name} does not name {', '.join(strange)}: it will not ask them")
    return [
        _only_tested(site, num_shared_groups) if site.name in study.sites.evaluate else site for site in sites
    ]


def _only_tested(site: FoundSite, num_shared_groups: int) -> FoundSite:
    if isinstance(site.split, ColumnSplit) and num_shared_groups:
        # With all its images it would test on patients or lesions that another site trains on.
        log.warn(
            f"{site.name} only scores, and keeps the split of the data: {num_shared_groups} patients or lesions have "
            "images at several sites",
            site=site.name,
        )
        return site
    data = site.data
    if isinstance(data, CsvData) and data.columns.split is not None:
        data = data.model_copy(update={"columns": data.columns.model_copy(update={"split": None})})
    log.event(f"{site.name} only scores: all its images are test images", site=site.name)
    return replace(site, data=data, split=NoSplit(all="test"))


def _in_containers(sites: Mapping[str, SiteConfig], number: int) -> dict[str, SiteConfig]:
    """The same by number, with the paths that containers have."""
    if number != len(sites):
        raise SiteDataError(
            f"the images are of {len(sites)} sites ({', '.join(sites)}), there are containers for {number}; "
            f"`consilium-server compose --sites {len(sites)} > docker-compose.override.yml` makes as many"
        )
    places = {"state_dir": STATE_IN_CONTAINER, "socket": SOCKET_IN_CONTAINER}
    return {str(place): site.model_copy(update=places) for place, site in enumerate(sites.values(), start=1)}


def _settings(site: FoundSite, out: Path, weights: Path | None, threads: int | None, seed: int) -> SiteConfig:
    split = (
        site.split.model_copy(update={"seed": seed}) if isinstance(site.split, GroupedSplit) else site.split
    )
    return SiteConfig(
        name=site.name,
        data=site.data,
        split=split,
        state_dir=(out / "state" / site.name).absolute(),
        weights_dir=None if weights is None else weights.absolute(),
        overlap_secret=OVERLAP_SECRET,
        threads=threads,
        policy=SIMULATED,
    )


def _with_roster(sites: Mapping[str, SiteConfig], out: Path) -> dict[str, SiteConfig]:
    """The same with keys for secure aggregation, which real sites would compare by telephone; kept if they exist.

    A container makes its key itself, in a place that is not seen from here. Raises ConfigError for a damaged key,
    and StorageError.
    """
    if len(sites) < 2:
        return dict(sites)
    keys = {
        name: roster.public_key(roster.load_identity(site.state_dir / roster.IDENTITY))
        for name, site in sites.items()
    }
    write_atomically(out / ROSTER, to_yaml({"sites": keys}))
    return {name: site.model_copy(update={"roster": ROSTER}) for name, site in sites.items()}


def _write_overlap_secret(path: Path) -> None:
    """The secret that real sites would give each other past the server; kept if it exists. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:  # noqa: PTH123
            file.write(f"{secrets.token_hex(32)}\n")
    except FileExistsError:
        pass
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}; give another folder") from error


def pooled_site(federation: FoundFederation) -> FoundSite:
    """All training and validation images in one place; its test images are the sites' own, so it tests on none.

    Raises SiteDataError if the split is not known yet.
    """
    first = federation.sites[0]
    if not isinstance(first.data, CsvData) or first.data.columns.split is None:
        raise SiteDataError(
            "a pooled site needs a labels.csv with a column `split`, or it would train on the sites' test "
            "images; make one with `consilium-site split`"
        )
    column = first.data.columns.split
    values = sorted({cells[column] for _, cells in read_table(first.data.labels).rows})
    data = first.data.model_copy(
        update={
            "row_filter": RowFilter(
                column=column,
                values=tuple(value for value in values if SIDES.get(value.lower()) != "test"),
            )
        }
    )
    return FoundSite(POOLED, data, ColumnSplit(), num_images=sum(s.num_images for s in federation.sites))
