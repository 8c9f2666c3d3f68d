"""Arguments and options that several commands of `consilium-server` take."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

SERVER = "Run a server"
STUDIES = "Run studies"
SIMULATION = "Simulate on this machine"
CONTAINERS = "Containers"

ServerDir: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")]
RunDir: TypeAlias = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
SiteName: TypeAlias = Annotated[str, typer.Argument(metavar="SITE", help="Name of a site.")]
StudyFile: TypeAlias = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Settings of the study.")]
SitesDir: TypeAlias = Annotated[
    Path, typer.Option("--sites", metavar="DIR", help="Folder written by `consilium-site simulate`.")
]
RunsDir: TypeAlias = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of all runs.")]
Port: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--port",
        metavar="PORT",
        min=1,
        max=65535,
        help="Port for the sites to connect to; without it 9092, or a free one.",
    ),
]
StartFrom: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--start-from",
        metavar="RUN|FILE",
        help="Begin with the weights of this run, or of a file of a run's weights. With `rounds: 0` they are scored.",
    ),
]
Engine: TypeAlias = Annotated[
    Literal["processes", "inline", "ray"],
    typer.Option(
        "--engine",
        help="`processes`: server, gateways and trainers as between hospitals. `inline`: all in this process, without "
        "a network; quicker, and the same bits. `ray`: trainers on Ray's workers, for many sites.",
    ),
]
Jobs: TypeAlias = Annotated[
    int,
    typer.Option(
        "--jobs",
        metavar="N",
        min=1,
        help="Runs at the same time, each in a process of its own. The GPU's memory must hold them all.",
    ),
]
CONSOLE_PORT = 8765
ConsolePort: TypeAlias = Annotated[
    int, typer.Option("--console-port", metavar="PORT", min=1, max=65535, help="Port of the console.")
]
PUBLISHED_HELP = (
    "In a container whose port is published on loopback alone: listen on every address of the container."
)
