"""The settings of a simulated federation: one site.yaml per site found, and who they are.

Only for simulation on one machine: a real hospital writes its own YAML. `federation.yaml`
tells the simulating server the sites, the classes and whether the images are synthetic,
which at real institutions the study operator knows.
"""

from pathlib import Path

from client.config import CsvData, GroupedSplit, NoSplit, Only, SiteConfig
from client.data.discover import FoundFederation, FoundSite
from common import log
from common.errors import SiteDataError
from common.settings import to_yaml
from common.weights import write_atomically

POOLED = "pooled"
"""Name of the site that holds every site's training images: centralised training."""


def write_sites(
    found: FoundFederation,
    out: Path,
    *,
    synthetic: bool,
    weights: Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    pooled: FoundSite | None = None,
) -> None:
    """Write OUT/NAME.yaml per site, `pooled` among them, and OUT/federation.yaml. Raises StorageError."""
    all_sites = [*found.sites, *([pooled] if pooled else [])]
    sites = {site.name: _settings(site, out, weights, threads, seed) for site in all_sites}
    for name, settings in sites.items():
        write_atomically(out / f"{name}.yaml", to_yaml(settings.model_dump(mode="json", exclude_none=True)))
    about = {
        "synthetic": synthetic,
        "classes": list(found.classes),
        "sites": {site.name: site.num_images for site in found.sites},
    }
    write_atomically(out / "federation.yaml", to_yaml(about))
    if not found.has_groups:
        log.warn("no column names the lesion or patient: images of one lesion may stand in train and test")
    log.event(f"wrote the settings of {', '.join(sites)} to {out}")


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
        threads=threads,
    )


def pooled_site(found: FoundFederation) -> FoundSite:
    """All training images in one place; its test images are the sites' own, so it scores none.

    Raises SiteDataError if the split is not known yet.
    """
    first = found.sites[0]
    if not isinstance(first.data, CsvData) or first.data.columns.split is None:
        raise SiteDataError(
            "a pooled site needs a labels.csv with a column `split`, or it would train on the sites' test "
            "images; make one with `consilium-site split`"
        )
    columns = first.data.columns
    data = first.data.model_copy(
        update={
            "only": Only(column=columns.split, values=("train",)),
            "columns": columns.model_copy(update={"split": None}),
        }
    )
    return FoundSite(POOLED, data, NoSplit(all="train"), num_images=sum(s.num_images for s in found.sites))
