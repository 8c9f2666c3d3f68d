"""Studies on this machine: one study, one that broke off, or a grid of them.

With the engine `processes` a simulated federation has the real server, gateways and trainers, joined by loopback. With
`inline` server and trainers share this process, which is quick and ends with the same bits. The folder of sites is
written by `consilium-site simulate` or `partition`.
"""

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from common.config import StudyConfig
from consilium_fl.extras import missing
from consilium_fl.runs import Run
from server.simulation import engines
from server.simulation import grid as experiments
from server.simulation import matrix as matrices
from server.simulation import simulate as simulation
from server.simulation.engines import EngineName
from server.simulation.models_table import Table

Where: TypeAlias = str | PathLike[str]


def simulate(
    study: StudyConfig | Where,
    sites: Where,
    *,
    runs: Where = "runs",
    adopt: bool = False,
    leave_out: Collection[str] = (),
    port: int | None = None,
    engine: EngineName = "processes",
    workers: int | None = None,
    gpu_share: float | None = None,
    start_from: Run | Where | None = None,
) -> Run:
    """Run a study to its end with the sites in the folder `sites`; returns the run, finished or failed.

    `study` is a YAML file or its settings. The run is in `runs`/NAME; an earlier run of that name is moved aside.
    `adopt` takes sites and classes from the folder instead of from the study, so that every site trains.
    Sites in `leave_out` are enrolled but never start. `port` is the server's; None takes 9092, or a free one.
    `engine` is `processes`, `inline` or `ray`; weights and scores have the same bits. `ray` has `workers`, each with
    `gpu_share` of a GPU. `start_from` is a run, its folder or a file of weights to begin with; with `rounds: 0` the
    study only scores them.

    Every process that was started has ended on return, on an error and on KeyboardInterrupt. Raises ConfigError
    or LaunchError if the study cannot start.

        >>> run = simulate("configs/study/demo.yaml", "runs/sites", adopt=True)     # doctest: +SKIP
        >>> run.finished, run.scores()[-1].accuracy                                 # doctest: +SKIP
        (True, 0.61)
    """
    given = study if isinstance(study, StudyConfig) else Path(study)
    folder, _ = simulation.simulate_study(
        given,
        Path(sites),
        Path(runs),
        engine=engines.engine(engine, open_trainer, port, workers, gpu_share),
        adopt=adopt,
        leave_out=leave_out,
        start_from=_weights_of(start_from),
    )
    return Run.open(folder)


def resume(
    run: Run | Where, sites: Where, *, port: int | None = None, engine: EngineName = "processes"
) -> Run:
    """Continue a run that broke off, from its last checkpoint, with this engine or the one that began it.

    It ends with the same weights as a run without interruption. Raises ConfigError if there is no checkpoint,
    LaunchError if the study cannot start.

        >>> resume("runs/demo", "runs/sites").finished                              # doctest: +SKIP
        True
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    simulation.resume_run(folder, Path(sites), engine=engines.engine(engine, open_trainer, port))
    return Run.open(folder)


def matrix(
    study: StudyConfig | Where,
    sites: Where,
    *,
    runs: Where = "runs",
    engine: EngineName = "processes",
    jobs: int = 1,
) -> Table:
    """Run each site's own model, the federated and the pooled one with the settings of one study, and compare them.

    Every model is scored on every site's test images. The pooled one needs a site `pooled` in `sites`. Returns the
    table, in `runs`/NAME-matrix. A model that fails does not stop the others. `jobs` models are trained at a time, as
    in `compare`. Raises ConfigError.

        >>> matrix("configs/study/demo.yaml", "runs/sites").path                    # doctest: +SKIP
    """
    given = study if isinstance(study, StudyConfig) else Path(study)
    return matrices.run_matrix(given, Path(sites), Path(runs), engines.engine(engine, open_trainer), jobs)


def leave_one_site_out(
    study: StudyConfig | Where,
    sites: Where,
    *,
    runs: Where = "runs",
    engine: EngineName = "processes",
    jobs: int = 1,
) -> Table:
    """Run the study, and once more without each training site, which then scores the model of the others.

    Returns the table, in `runs`/NAME-leave-one-site-out. `jobs` models are trained at a time, as in `compare`. Raises
    ConfigError.

        >>> leave_one_site_out("configs/study/demo.yaml", "runs/sites").path        # doctest: +SKIP
    """
    given = study if isinstance(study, StudyConfig) else Path(study)
    return matrices.run_left_out(given, Path(sites), Path(runs), engines.engine(engine, open_trainer), jobs)


def _weights_of(start_from: Run | Where | None) -> Path | None:
    match start_from:
        case None:
            return None
        case Run():
            return start_from.folder
        case _:
            return Path(start_from)


def open_trainer() -> engines.OpenTrainer:
    """The sites' side, for an engine that runs it in this process. Raises ModuleNotFoundError that names the extra.

    It is loaded by name, as the other engine starts `python -m client.cli`: the server's side knows no trainer.
    """
    try:
        opened: engines.OpenTrainer = importlib.import_module("client.hosted").HostedTrainer
    except ModuleNotFoundError as error:
        raise missing("engine inline", error) from error
    return opened


@dataclass(frozen=True)
class Variant:
    """One study of a grid."""

    name: str
    seed: int
    run: Run | None
    """None if it did not start."""
    failure: str
    """Empty if it finished, or is only incomplete."""
    lacking: str = ""
    """Why it is incomplete; empty if it is not."""


@dataclass(frozen=True)
class Comparison:
    """The studies of a grid, and the folder of comparison.md, .csv and .png."""

    folder: Path
    variants: tuple[Variant, ...]

    @property
    def finished(self) -> bool:
        """True if every variant finished and none is incomplete."""
        return not any(variant.failure or variant.lacking for variant in self.variants)

    @property
    def incomplete(self) -> bool:
        """True if every variant finished, and at least one of them is incomplete."""
        return not self.finished and not any(variant.failure for variant in self.variants)


def compare(
    grid: Where,
    sites: Where,
    *,
    runs: Where = "runs",
    only: Collection[str] = (),
    engine: EngineName = "processes",
    jobs: int = 1,
    plan_only: bool = False,
) -> Comparison:
    """Run every study of a grid that has not finished yet, `jobs` of them at a time, and compare them.

    `only` names variants to run instead of all. A study that fails does not stop the others; one that broke off
    goes on from its last checkpoint. With `jobs` above 1 each run is a process of its own, whose log is
    `runs`/GRID/RUN.log. With `plan_only` the log says what would be run, and nothing is run: the comparison
    has no variants. Raises ConfigError if the grid, the sites or `jobs` cannot be used.

        >>> comparison = compare("configs/grid/ham10000-sites.yaml", "sites")      # doctest: +SKIP
        >>> [(v.name, v.run.scores()[-1].balanced_accuracy) for v in comparison.variants]   # doctest: +SKIP
    """
    folder, rows = experiments.run_grid(
        Path(grid),
        Path(sites),
        Path(runs),
        tuple(only),
        engines.engine(engine, open_trainer),
        jobs,
        plan_only,
    )
    return Comparison(
        folder,
        tuple(
            Variant(
                row.variant,
                row.seed,
                Run.open(row.run_dir) if (row.run_dir / "study.yaml").exists() else None,
                row.failure or "",
                row.lacking,
            )
            for row in rows
        ),
    )
