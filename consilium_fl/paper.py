"""The experiments of arXiv:2505.23040, each with one call. Data sets and weights lie on the disk already."""

from collections.abc import Collection
from pathlib import Path

from consilium_fl.simulation import Where, open_trainer
from server.paper import datasets, experiment
from server.paper import run as experiments
from server.paper.experiment import Size
from server.paper.run import Done
from server.simulation import engines
from server.simulation.engines import EngineName


def run(
    name: str,
    data: Where,
    *,
    runs: Where = "runs",
    weights: Where | None = None,
    size: Size = "paper",
    only: Collection[str] = (),
    random_weights: bool = False,
    plan_only: bool = False,
    engine: EngineName = "inline",
    jobs: int = 1,
) -> Done | None:
    """Run an experiment of configs/paper on the data sets below `data`; None if it was only planned.

    `weights` is a folder with ENCODER.safetensors for every encoder. `only` names rows of the table. The results are
    in `runs`/NAME-SIZE; a broken off experiment goes on where it stopped. `jobs` runs are under way at a time, as in
    `compare`. Raises ConfigError for data sets or weights that are not there.

        >>> run("federated-skin", "data", weights="weights", size="small")          # doctest: +SKIP
    """
    return experiments.run(
        name,
        Path(data),
        Path(runs),
        engines.engine(engine, open_trainer),
        size=size,
        weights=None if weights is None else Path(weights),
        random_weights=random_weights,
        only=tuple(only),
        plan_only=plan_only,
        jobs=jobs,
    )


def listing() -> str:
    """The experiments, one a paragraph, with the data sets that each needs."""
    parts = []
    for name in experiment.names():
        found = experiment.load(name)
        needs = "; ".join(datasets.DATA_SETS[key].title for key in found.data_sets)
        parts.append(f"{name}\n  {found.title}\n  needs {needs}")
    return "\n".join(parts)
