"""`consilium-server`: what a study operator and a researcher type.

Commands import what they need when they run, so `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common import log
from common.errors import ConfigError, ConsiliumError
from common.processes import Interrupted, interruptible
from server import containers, overview, wishes
from server.cli import operate
from server.folder import open_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 only if the study finished, 1 if not, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    log.start("json" if options.json else "readable")
    try:
        with interruptible():
            code: int = options.run(options)
    except ConsiliumError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print("stopped; every process that was started has ended", file=sys.stderr)
        return interrupted.exit_code
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="consilium-server",
        description="Runs federated studies: hospitals train one image classifier, every image stays where it is.",
    )
    parser.add_argument("--json", action="store_true", help="log JSON lines instead of readable ones")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    simulate = commands.add_parser(
        "simulate",
        help="run a study with all its sites as processes on this machine",
        description="Starts a server, and for every site of the study a gateway and a trainer, on loopback "
        "with TLS and site keys; runs the study; stops them all. Exit code 0 only if it finished.",
    )
    simulate.add_argument("study", type=Path, metavar="STUDY.yaml")
    simulate.add_argument(
        "--sites", type=Path, required=True, metavar="DIR", help="written by `consilium-site simulate`"
    )
    simulate.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="default %(default)s"
    )
    simulate.add_argument(
        "--port", type=int, help="for the sites to connect to (default 9092, or a free one)"
    )
    simulate.add_argument(
        "--adopt",
        action="store_true",
        help="take sites and classes from DIR instead of from the study: every site trains",
    )
    simulate.add_argument(
        "--leave-out",
        nargs="+",
        default=[],
        metavar="SITE",
        help="enrol these sites but never start them, to see what the study does without them",
    )
    simulate.set_defaults(run=_simulate)

    resume = commands.add_parser(
        "resume",
        help="go on with a study that broke off or was stopped, from its last round",
        description="The resumed study ends with the same weights as one that never broke off. Of a server: "
        "`resume DIR STUDY`, and it waits for its turn. Of a simulation: `resume RUN --sites DIR`.",
    )
    resume.add_argument("run_dir", type=Path, metavar="DIR")
    resume.add_argument("study", nargs="?", metavar="STUDY", help="with a server's folder: which one")
    resume.add_argument("--sites", type=Path, metavar="DIR", help="the folder that a simulation was run with")
    resume.add_argument("--port", type=int, help="for the sites to connect to (default 9092, or a free one)")
    resume.set_defaults(run=_resume)

    compare = commands.add_parser(
        "compare",
        help="run a grid of studies on this machine and compare them",
        description="Runs every variant of GRID.yaml that has not finished yet, one after the other, and "
        "writes comparison.md, .csv and .png. Exit code 0 only if all finished.",
    )
    compare.add_argument("grid", type=Path, metavar="GRID.yaml")
    compare.add_argument("--sites", type=Path, required=True, metavar="DIR")
    compare.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default %(default)s")
    compare.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="these variants, not all")
    compare.set_defaults(run=_compare)

    status = commands.add_parser(
        "status",
        help="say what is going on in a run, or at a server",
        description="Study, round, who has answered, who is late by how much, bytes, memory, last checkpoint; "
        "with `consilium-server --json status` as JSON. Exit code 1 if the study failed or "
        "its server is gone, of a server if it is not up.",
    )
    status.add_argument("run_dir", type=Path, metavar="RUN", help="of one study, or a server's folder")
    status.set_defaults(run=_status)

    readmit = commands.add_parser(
        "readmit",
        help="let a site that was set aside take part again",
        description="From the next round on; a study that is running need not be stopped.",
    )
    readmit.add_argument("run_dir", type=Path, metavar="RUN")
    readmit.add_argument("site", metavar="SITE")
    readmit.set_defaults(run=_readmit)

    report = commands.add_parser("report", help="write the report of a run again")
    report.add_argument("run_dir", type=Path, metavar="RUN")
    report.set_defaults(run=_report)
    operate.add_commands(commands)
    containers.add_commands(commands)
    return parser


def _simulate(options: argparse.Namespace) -> int:
    from server import simulation

    outcome = simulation.simulate(
        options.study,
        options.sites,
        options.runs,
        port=options.port,
        adopt=options.adopt,
        leave_out=options.leave_out,
    )
    print(outcome.summary)
    return 0 if outcome.finished else 1


def _resume(options: argparse.Namespace) -> int:
    if options.study is not None:
        return operate.resume(open_folder(options.run_dir), options.study)
    if options.sites is None:
        raise ConfigError(
            "give the name of the study with a server's folder, or --sites with the run of a simulation"
        )
    from server import simulation

    outcome = simulation.resume(options.run_dir, options.sites, port=options.port)
    print(outcome.summary)
    return 0 if outcome.finished else 1


def _compare(options: argparse.Namespace) -> int:
    from server import experiments

    done = experiments.run_grid(options.grid, options.sites, options.runs, tuple(options.only))
    return 0 if done else 1


def _status(options: argparse.Namespace) -> int:
    if (options.run_dir / "federation.yaml").exists():
        server = operate.look(open_folder(options.run_dir))
        print(server.model_dump_json(indent=1) if options.json else operate.text(server))
        return 0 if server.up else 1
    now = overview.look(options.run_dir)
    print(now.model_dump_json(indent=1) if options.json else overview.text(now))
    return 1 if now.stage in ("failed", "crashed") else 0


def _readmit(options: argparse.Namespace) -> int:
    wishes.ask_to_readmit(options.run_dir, options.site)
    print(f"{options.site} gets a plan again in the next round of {options.run_dir.name}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from server import simulation

    path = simulation.rewrite_report(options.run_dir)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
