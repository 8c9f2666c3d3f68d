"""Commands that prepare data sets and share them out among simulated sites."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from client.cli.options import SIMULATION, Pooled, Seed, Threads, Weights, load_study
from common import log
from common.console.command_line import command
from common.errors import ConfigError

if TYPE_CHECKING:
    from client.data.simulation.partition import Partition

By: TypeAlias = Literal["acquisition", "iid", "dirichlet", "quantity", "class"]


def add_commands(app: typer.Typer) -> None:
    """Add what prepares data sets and simulated sites to `consilium-site`."""
    command(
        app,
        "split",
        SIMULATION,
        examples=["consilium-site split labels.csv --out new.csv --group lesion_id --strata site age"],
    )(_split)
    command(
        app,
        "simulate",
        SIMULATION,
        examples=[
            "consilium-site simulate --out sites",
            "consilium-site simulate --data images --out sites --threads 1",
            "consilium-site simulate --data images --out sites --study study.yaml",
            "consilium-site simulate --join ham=ham.yaml --join isic=isic.yaml --drop-shared isic --out sites",
        ],
    )(_simulate)
    command(
        app,
        "partition",
        SIMULATION,
        examples=[
            "consilium-site partition labels.csv --out sites --by iid --sites 4",
            "consilium-site partition site.yaml --out sites --by dirichlet --sites 5 --alpha 0.5",
        ],
    )(_partition)


def _split(
    labels: Annotated[Path, typer.Argument(metavar="LABELS.csv", help="A table with a row per image.")],
    out: Annotated[Path, typer.Option("--out", metavar="NEW.csv", help="Where to write the new table.")],
    label: Annotated[str, typer.Option("--label", metavar="COLUMN", help="Column of the class.")] = "label",
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="COLUMN",
            help="Column whose groups stay on one side. Without it: patient_id or lesion_id, if the table has one.",
        ),
    ] = None,
    strata: Annotated[
        list[str] | None,
        typer.Option("--strata", metavar="COLUMN...", help="Further columns to stratify by."),
    ] = None,
    test: Annotated[
        float, typer.Option("--test", metavar="SHARE", help="Share of the images for testing.")
    ] = 0.2,
    validation: Annotated[
        float,
        typer.Option(
            "--validation",
            metavar="SHARE",
            help="Share of the other images that the study chooses by; 0: none.",
        ),
    ] = 0.15,
    seed: Seed = 0,
) -> int:
    """Add a column to a labels.csv: train, validation or test.

    Draws stratified test and validation sets in which no group is divided. So every study on these images is
    tested on the same ones.
    """
    from client.data.splitting.split import write_split

    if not 0 <= validation <= 0.5:
        raise ConfigError(f"--validation is {validation:g}, expected a share from 0 to 0.5")
    shares = {"test_share": test, "validation": validation}
    kept = write_split(labels, out, label=label, group=group, strata=strata or [], **shares, seed=seed)
    together = (
        f"images of one {kept} are on one side" if kept else "images of one patient may be on two sides"
    )
    log.event(f"wrote {out} with a column `split`; {together}")
    return 0


def _simulate(
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder to write to.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Images: labels.csv with a site column, or SITE/CLASS/ folders."
        ),
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(
            "--join",
            metavar="NAME=SITE.yaml",
            help="Instead of --data: a site NAME whose images SITE.yaml reads, of any kind. Once for every site.",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--classes",
            metavar="CLASS...",
            help="With --join: the study's classes, if the sites have different ones.",
        ),
    ] = None,
    drop_shared: Annotated[
        list[str] | None,
        typer.Option(
            "--drop-shared",
            metavar="NAME...",
            help="With --join: leave images that other sites have out of these sites.",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", metavar="N", help="Synthetic images per site, without --data.")
    ] = 300,
    study: Annotated[
        Path | None,
        typer.Option(
            "--study",
            metavar="STUDY.yaml",
            help="Take the sites' roles from this study: a site under `evaluate` tests on all its images.",
        ),
    ] = None,
    seed: Seed = 0,
    weights: Weights = None,
    threads: Threads = None,
    pooled: Pooled = False,
    containers: Annotated[
        int | None,
        typer.Option(
            "--containers",
            metavar="N",
            help="Write 1.yaml to N.yaml with the paths of containers, for docker-compose.yml.",
        ),
    ] = None,
) -> int:
    """Write the settings of a simulated federation's sites.

    Writes one YAML per site and federation.yaml to OUT, for `consilium-server simulate`. Without --data and --join,
    synthetic images are drawn first. Joined data sets must not share images.
    """
    from client.data.simulation import discover, site_files
    from client.data.simulation import join as joining

    if join and (data is not None or pooled):
        raise ConfigError("--join names every site's images itself; leave --data and --pooled out")
    if not join and (classes or drop_shared):
        raise ConfigError("--classes and --drop-shared go with --join")
    chosen, synthetic = load_study(study), data is None and not join
    if synthetic:
        from client.data.simulation.synthetic import SITES, generate, site_names

        data = out / "synthetic-images"
        names = SITES if containers is None else site_names(containers)
        generate(data, sites=names, images_per_site=images, seed=seed)
        log.event(f"drew SYNTHETIC images, {images} per site on average, to {data}")
    if data is not None:
        sites = discover.discover(data)
    else:
        sites = joining.join(_named_paths(join or []), out, classes=classes, drop_shared=drop_shared or [])
    site_files.write_sites(
        sites,
        out,
        synthetic=synthetic,
        weights=weights,
        threads=threads,
        seed=seed,
        pooled=site_files.pooled_site(sites) if pooled else None,
        containers=containers,
        study=chosen,
    )
    return 0


def _partition(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="SITE.yaml", help="Settings that read the whole data set, or a labels.csv itself."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder to write to.")],
    by: Annotated[
        By,
        typer.Option(
            "--by",
            help="acquisition: where images were made. iid: all sites alike. dirichlet: other proportions of classes. "
            "quantity: other sizes. class: one class per site.",
        ),
    ] = "acquisition",
    column: Annotated[
        str | None,
        typer.Option("--column", metavar="COLUMN", help="Column of the csv, for --by acquisition."),
    ] = None,
    sites: Annotated[
        int | None,
        typer.Option("--sites", metavar="N", help="Number of sites, for iid, dirichlet and quantity."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha", metavar="A", help="For dirichlet and quantity: the smaller, the more uneven."
        ),
    ] = None,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="STUDY.yaml", help="Take the classes of this study.")
    ] = None,
    seed: Seed = 0,
    weights: Weights = None,
    threads: Threads = None,
    pooled: Pooled = False,
) -> int:
    """Share out one data set among simulated sites.

    Images of one patient or lesion stay together. Writes to OUT, for `consilium-server simulate`: one YAML per
    site, federation.yaml, the list of each site's images and a picture of the classes.
    """
    from client.data.simulation import partition_data, site_counts, site_files

    how, title = _how(_Wanted(by, sites, alpha, column))
    whole = partition_data.source(data, seed, column)
    chosen = load_study(study)
    parts = partition_data.partition(whole, how, seed, None if chosen is None else chosen.classes)
    written, all_images = partition_data.write(parts, whole, out, title)
    site_files.write_sites(
        written,
        out,
        synthetic=False,
        weights=weights,
        threads=threads,
        pooled=all_images if pooled else None,
    )
    print(site_counts.table(parts))
    return 0


@dataclass(frozen=True)
class _Wanted:
    """Options of `partition` that depend on each other."""

    by: By
    num_sites: int | None
    alpha: float | None
    column: str | None


def _how(wanted: _Wanted) -> tuple["Partition", str]:
    """How images are shared out, and the title of a picture of it. Raises ConfigError."""
    from client.data.simulation import partition

    by, num_sites, alpha = wanted.by, wanted.num_sites, wanted.alpha
    needs = {"iid": ("--sites",), "dirichlet": ("--sites", "--alpha"), "quantity": ("--sites", "--alpha")}
    given = {"--sites": num_sites, "--alpha": alpha, "--column": wanted.column}
    allowed = (*needs.get(by, ()), *(("--column",) if by == "acquisition" else ()))
    problems = [f"--by {by} needs {name}" for name in needs.get(by, ()) if given[name] is None]
    problems += [f"--by {by} has no {name}" for name in given if given[name] and name not in allowed]
    if num_sites is not None and not 2 <= num_sites <= 1000:
        problems.append(f"--sites {num_sites}: expected 2 to 1000")
    if alpha is not None and not 0 < alpha < math.inf:
        problems.append(f"--alpha {alpha:g}: expected a number above 0")
    if problems:
        raise ConfigError("; ".join(problems))
    match by, num_sites, alpha:
        case "iid", int(), _:
            return partition.Alike(num_sites), f"{num_sites} sites alike"
        case "dirichlet", int(), float():
            return partition.LabelSkew(num_sites, alpha), f"Classes by Dirichlet, alpha {alpha:g}"
        case "quantity", int(), float():
            return partition.QuantitySkew(num_sites, alpha), f"Sizes by Dirichlet, alpha {alpha:g}"
        case "class", _, _:
            return partition.ClassPerSite(), "One class per site"
        case _:
            return partition.ByAcquisition(), "Sites by where images were made"


def _named_paths(entries: Iterable[str]) -> dict[str, Path]:
    """`--join ham=HAM.yaml`, by name of the site. Raises ConfigError."""
    from common.config.types import NAME_PATTERN

    paths: dict[str, Path] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if equals and path and not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(
                f"--join {entry}: {name!r} cannot be the name of a site, which is the name of a file, too; write "
                "letters a to z and A to Z, digits, `_`, `.` and `-`, at most 63, and a letter or digit first, as in "
                "--join Zuerich=zurich.yaml"
            )
        if not equals or not path:
            raise ConfigError(f"--join {entry}: expected NAME=SITE.yaml, as in --join ham=ham10000.yaml")
        if name in paths:
            raise ConfigError(f"--join {entry}: there is a site {name} already; give each its own name")
        paths[name] = Path(path)
    return paths
