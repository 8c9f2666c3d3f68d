"""Commands of research: a study with all its sites on this machine, and grids of studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.console.command_line import command, study_exit_code
from common.errors import ConfigError
from server.cli.options import (
    SIMULATION,
    STUDIES,
    Engine,
    Jobs,
    Port,
    RunDir,
    RunsDir,
    SitesDir,
    StartFrom,
    StudyFile,
)

if TYPE_CHECKING:
    from consilium_fl.runs import Run
    from server.simulation.models_table import Table


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `consilium-server`."""
    command(
        app,
        "resume",
        STUDIES,
        examples=[
            "consilium-server resume /srv/skin demo",
            "consilium-server resume runs/demo --sites sites",
        ],
    )(_resume)
    command(app, "report", STUDIES, examples=["consilium-server report runs/demo"])(_report)
    command(
        app,
        "simulate",
        SIMULATION,
        examples=[
            "consilium-server simulate study.yaml --sites sites",
            "consilium-server simulate study.yaml --sites sites --adopt",
            "consilium-server simulate study.yaml --sites sites --engine inline",
            "consilium-server simulate study.yaml --sites sites --leave-out north south",
            "consilium-server simulate scores.yaml --sites sites --start-from runs/demo",
        ],
    )(_simulate)
    command(
        app,
        "difference",
        STUDIES,
        examples=[
            "consilium-server difference runs/fedprox runs/fedavg",
            "consilium-server difference runs/fedprox runs/fedavg --site north",
        ],
    )(_difference)
    command(
        app,
        "compare",
        SIMULATION,
        examples=[
            "consilium-server compare grid.yaml --sites sites",
            "consilium-server compare grid.yaml --sites sites --plan",
            "consilium-server compare grid.yaml --sites sites --only fedavg fedprox",
            "consilium-server compare grid.yaml --sites sites --engine inline --jobs 4",
        ],
    )(_compare)
    command(
        app,
        "matrix",
        SIMULATION,
        examples=[
            "consilium-server matrix study.yaml --sites sites --engine inline",
            "consilium-server matrix study.yaml --sites sites --engine inline --jobs 4",
        ],
    )(_matrix)
    command(
        app,
        "leave-one-site-out",
        SIMULATION,
        examples=[
            "consilium-server leave-one-site-out study.yaml --sites sites --engine inline",
            "consilium-server leave-one-site-out study.yaml --sites sites --engine inline --jobs 4",
        ],
    )(_leave_one_site_out)


def _simulate(
    study: StudyFile,
    sites: SitesDir,
    runs: RunsDir = Path("runs"),
    port: Port = None,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="Take sites and classes from the folder of --sites, not from the study; every site trains.",
        ),
    ] = False,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            "--leave-out",
            metavar="SITE...",
            help="Enrol these sites but never start them, to see the study without them.",
        ),
    ] = None,
    engine: Engine = "processes",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=1, help="With `--engine ray`: sites that work at the same time."
        ),
    ] = None,
    gpu_share: Annotated[
        float | None,
        typer.Option(
            "--gpu-share", metavar="X", min=0.0, help="With `--engine ray`: GPUs for each of them, as 0.25."
        ),
    ] = None,
    start_from: StartFrom = None,
) -> int:
    """Run a study with all its sites on this machine.

    Starts a server, and for every site of the study a gateway and a trainer. They connect on loopback with TLS and
    site keys. Runs the study and stops all of them. With `--engine inline` all of it runs in one process instead. Exit
    code 0 only if the study finished; 3 if it finished without
    the score of a site that was to evaluate.
    """
    from consilium_fl import simulation

    run = simulation.simulate(
        study,
        sites,
        runs=runs,
        port=port,
        adopt=adopt,
        leave_out=leave_out or [],
        engine=engine,
        workers=workers,
        gpu_share=gpu_share,
        start_from=start_from,
    )
    print(run.describe())
    return _exit_code(run)


def _exit_code(run: "Run") -> int:
    return study_exit_code(finished=run.finished, incomplete=run.incomplete)


def _resume(
    run_dir: Annotated[
        Path, typer.Argument(metavar="DIR", help="The server's folder, or the run of a simulation.")
    ],
    study: Annotated[
        str | None, typer.Argument(metavar="STUDY", help="With a server's folder: the study to resume.")
    ] = None,
    sites: Annotated[
        Path | None,
        typer.Option(
            "--sites", metavar="DIR", help="With a simulation: the folder of sites that it was run with."
        ),
    ] = None,
    port: Port = None,
    engine: Engine = "processes",
) -> int:
    """Resume a study that broke off or was stopped, from its last round.

    A resumed study ends with the same weights as one that never broke off. Of a study that is finished but incomplete,
    the closing evaluation is repeated. At a server, `resume DIR STUDY` puts
    the study into the queue. For a simulation, `resume RUN --sites DIR` runs it now.
    """
    if study is not None:
        from server.cli import operate
        from server.deployment.folder import open_folder

        return operate.resume(open_folder(run_dir), study)
    if sites is None:
        raise ConfigError(
            "give the name of the study with a server's folder, or --sites with the run of a simulation"
        )
    from consilium_fl import simulation

    run = simulation.resume(run_dir, sites, port=port, engine=engine)
    print(run.describe())
    return _exit_code(run)


def _difference(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="OTHER", help="Folder of the run it is compared with.")],
    site: Annotated[
        str | None, typer.Option(metavar="SITE", help="Test images of this site alone, not of all sites.")
    ] = None,
) -> int:
    """Compare two runs on the same test patients.

    Prints the figures of RUN minus those of OTHER with 95 % intervals over patients, and the p of no difference. Sites
    send sums over their patients for it (`intervals` of a study).
    """
    from server.report import differences

    found = differences.of_runs(first, second, site)
    print(differences.table(found))
    if not all(one.is_paired for one in found.values()):
        print("\nThe runs were not tested on the same images, so they are taken as independent.")
    return 0


def _compare(
    grid: Annotated[
        Path, typer.Argument(metavar="GRID.yaml", help="A study and the variants of it to compare.")
    ],
    sites: SitesDir,
    runs: RunsDir = Path("runs"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="VARIANT...", help="Run these variants instead of all."),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Say what would be run and the names of the variants, and run nothing."),
    ] = False,
    engine: Engine = "processes",
    jobs: Jobs = 1,
) -> int:
    """Run a grid of studies on this machine and compare them.

    Runs every variant of GRID.yaml that has not finished yet, `--jobs` of them at a time; one that broke off goes on.
    Writes comparison.md, .csv and .png. Exit code 0 only if all finished; 3 if all did, but one is incomplete.
    """
    from consilium_fl import simulation

    compared = simulation.compare(
        grid, sites, runs=runs, only=only or (), engine=engine, jobs=jobs, plan_only=plan
    )
    return study_exit_code(finished=compared.finished, incomplete=compared.incomplete)


def _matrix(
    study: StudyFile,
    sites: SitesDir,
    runs: RunsDir = Path("runs"),
    engine: Engine = "processes",
    jobs: Jobs = 1,
) -> int:
    """Compare each site's own model, the federated and the pooled one.

    Trains them with the settings of one study, and scores each on every site's test images. The pooled model needs a
    site with all training images, which `consilium-site simulate --pooled` writes. Writes matrix.md and .csv into
    RUNS/NAME-matrix; a model that has finished before is kept, one that broke off goes on. Exit code 0 only if all
    finished; 3 if one is incomplete.
    """
    from consilium_fl import simulation

    return _tabled(simulation.matrix(study, sites, runs=runs, engine=engine, jobs=jobs))


def _leave_one_site_out(
    study: StudyFile,
    sites: SitesDir,
    runs: RunsDir = Path("runs"),
    engine: Engine = "processes",
    jobs: Jobs = 1,
) -> int:
    """Compare a study with itself without one of its sites, each in turn.

    The site that is left out scores the model of the others on its test images. Writes leave-one-site-out.md and .csv
    into RUNS/NAME-leave-one-site-out. Exit codes as of `matrix`.
    """
    from consilium_fl import simulation

    return _tabled(simulation.leave_one_site_out(study, sites, runs=runs, engine=engine, jobs=jobs))


def _tabled(table: "Table") -> int:
    print(f"wrote {table.path}")
    failed = bool(table.failures)
    return study_exit_code(
        finished=not failed and not table.lacking, incomplete=bool(table.lacking) and not failed
    )


def _report(run_dir: RunDir) -> int:
    """Write the report of a run again."""
    from consilium_fl.runs import Run

    print(f"wrote {Run.open(run_dir).write_report()}")
    return 0
