"""One experiment from the data sets on the disk to its table: `consilium-server paper NAME --data DIR`."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import log
from common.config import StudyConfig
from common.console.spans import format_span
from common.settings import load_settings
from server.aggregation.local_work import possible_steps
from server.paper import datasets, experiment, prepare, results
from server.paper.experiment import Experiment, Size
from server.report.comparison_row import Row
from server.report.text import counted
from server.simulation import encoders
from server.simulation import grid as grids
from server.simulation.engines import Engine
from server.simulation.jobs import require_usable
from server.simulation.simulate import load_federation
from server.storage.history import read_rounds

_LOOK_S = 2.0
"""How often it is looked whether the first round has ended."""


@dataclass(frozen=True)
class Done:
    """An experiment that was run."""

    table: Path
    """results.md; .csv, .tex and .png lie beside it."""
    rows: tuple[Row, ...]


def run(
    name: str,
    data: Path,
    runs: Path,
    engine: Engine,
    *,
    size: Size = "paper",
    weights: Path | None = None,
    random_weights: bool = False,
    only: tuple[str, ...] = (),
    plan_only: bool = False,
    jobs: int = 1,
) -> Done | None:
    """Prepare the sites, run every study that has not finished yet, write the results; None if it was only planned.

    Everything lies in RUNS/NAME-SIZE. `jobs` runs are under way at a time. A run that fails is a row that says why.
    Raises ConfigError for data sets that are not there, weights that are missing, and settings that cannot be used;
    nothing was begun then.
    """
    require_usable(jobs, engine)
    wanted = experiment.load(name)
    places = datasets.find(wanted.data_sets, data)
    for key in wanted.data_sets:
        log.event(f"{datasets.DATA_SETS[key].title}: {places[key]}")
    grid = wanted.grid_of(size)
    studies = grids.wanted_studies(grids.plan(grid, wanted.name).studies, only, wanted.name)
    encoders.require(studies.values(), wanted.name)
    files = prepare.first_weights(studies.values(), weights, random=random_weights)
    folder = runs / f"{wanted.name}-{size}"
    sites = prepare.sites(wanted, places, folder, weights)
    grid = load_settings(prepare.with_vectors(grid, folder / "grid.yaml", weights), grids.Grid, "grid")
    planned = prepare.started_from(grids.plan(grid, wanted.name), files)
    studies = grids.wanted_studies(planned.studies, only, wanted.name)
    _describe(wanted, size, studies, load_federation(sites).sites, jobs)
    if plan_only:
        grids.say_rows(studies)
        return None
    from_random = {key[0] for key, study in studies.items() if prepare.starts_from_random(study)}
    with _hours_after_a_round(studies, folder / grid.name, jobs):
        _, rows = grids.run(
            grid.name, planned, sites, folder, only, engine,
            on_rows=lambda so_far: results.write(wanted, size, so_far, from_random, folder),
            jobs=jobs,
        )  # fmt: skip
    return Done(folder / results.TABLE, rows)


def _describe(
    wanted: Experiment,
    size: Size,
    studies: Mapping[tuple[str, int], StudyConfig],
    images: Mapping[str, int],
    jobs: int,
) -> None:
    at_once = min(jobs, len(studies))
    rounds = sum(study.rounds for study in studies.values())
    log.event(
        f"{wanted.title}, size {size}: {counted(len(studies), 'run')}, {counted(rounds, 'round')} and about "
        f"{sum(_steps(study, images) for study in studies.values()):,} optimizer steps together"
        + (f", {at_once} runs at a time" if at_once > 1 else "")
    )
    if size == "small":
        log.event(f"smaller than in the paper: {wanted.small.reduced}")


def _steps(study: StudyConfig, images: Mapping[str, int]) -> int:
    """Optimizer steps of all sites, at most, if every image was for training."""
    of_a_round = (
        possible_steps(study.local, images[site], study.privacy).stop - 1 for site in study.sites.train
    )
    return study.rounds * sum(of_a_round)


@contextmanager
def _hours_after_a_round(
    studies: Mapping[tuple[str, int], StudyConfig], folder: Path, jobs: int
) -> Iterator[None]:
    """Say how long all runs take at the pace of the first round that ends; later runs may have larger encoders."""
    waiting = [study for study in studies.values() if not read_rounds(folder / study.name)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            for study in waiting:
                if first := [record for record in read_rounds(folder / study.name) if not record.closing]:
                    at_once = min(jobs, len(waiting))
                    hours = first[0].seconds * sum(other.rounds for other in waiting) / at_once / 3600
                    log.event(
                        f"the first round, with {study.model.encoder}, took {format_span(first[0].seconds)}; at this "
                        f"pace all runs take about {hours:.1f} hours"
                        + (f", {at_once} at a time" if at_once > 1 else "")
                    )
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
