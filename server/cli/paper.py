"""The command that runs the paper's experiments."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from common.console.command_line import command, study_exit_code
from common.errors import ConfigError
from server.cli.options import SIMULATION, Engine, Jobs, RunsDir


def add_commands(app: typer.Typer) -> None:
    """Add the command of this file to `consilium-server`."""
    command(
        app,
        "paper",
        SIMULATION,
        examples=[
            "consilium-server paper --list",
            "consilium-server paper federated-skin --data DATA --weights WEIGHTS --size small --plan",
            "consilium-server paper federated-skin --data DATA --weights WEIGHTS --size small",
        ],
    )(_paper)


def _paper(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The experiment, or a YAML file of one.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder below which the data sets lie.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="DIR", help="Folder with ENCODER.safetensors for every encoder."),
    ] = None,
    size: Annotated[
        Literal["paper", "small"],
        typer.Option("--size", help="`small` is for two processor cores, and says what it leaves out."),
    ] = "paper",
    runs: RunsDir = Path("runs"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="MODEL...", help="Run these rows of the table instead of all."),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Encoders without a file start from random weights."),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Prepare the sites, say what would be run and the names of the rows, and run nothing.",
        ),
    ] = False,
    list_them: Annotated[
        bool, typer.Option("--list", help="Print the experiments and the data sets that they need.")
    ] = False,
    engine: Engine = "inline",
    jobs: Jobs = 1,
) -> int:
    """Run an experiment of the paper on data sets as they are published.

    Nothing is fetched. Prepares the sites, runs every study that has not finished yet, and writes results.md, .csv,
    .tex and .png into RUNS/NAME-SIZE. A broken off experiment goes on where it stopped. Exit code 0 only if all runs
    finished; 3 if all did, but one is incomplete.
    """
    from consilium_fl import paper

    if list_them:
        print(paper.listing())
        return 0
    if name is None or data is None:
        raise ConfigError(
            "give the NAME of an experiment and --data DIR; `paper --list` prints what there is"
        )
    done = paper.run(
        name,
        data,
        runs=runs,
        weights=weights,
        size=size,
        only=only or (),
        random_weights=random_weights,
        plan_only=plan,
        engine=engine,
        jobs=jobs,
    )
    if done is None:
        return 0
    print(f"wrote {done.table}")
    failed = any(row.failure for row in done.rows)
    incomplete = any(row.lacking for row in done.rows)
    return study_exit_code(finished=not failed and not incomplete, incomplete=incomplete and not failed)
