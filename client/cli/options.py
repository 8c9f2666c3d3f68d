"""Arguments and options that several commands of `consilium-site` take."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

SETTING_UP = "Set up this site"
TAKING_PART = "Take part in studies"
GOVERNANCE = "Decide and review what leaves"
SIMULATION = "Prepare data and simulated sites"
MODELS = "Use models"

SiteFile: TypeAlias = Annotated[Path, typer.Argument(metavar="SITE.yaml", help="Settings of this site.")]
GatewayFile: TypeAlias = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder with gateway.yaml, or that file itself.")
]
TrainerSocket: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--socket", metavar="SOCKET", help="Unix socket of the trainer, instead of the one in the settings."
    ),
]
Until: TypeAlias = Annotated[
    Path | None, typer.Option("--until", metavar="FILE", help="Exit when this file appears.")
]
Weights: TypeAlias = Annotated[
    Path | None,
    typer.Option("--weights", metavar="DIR", help="Folder with the weights files that studies start from."),
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="CPU threads per site.")
]
Pooled: TypeAlias = Annotated[
    bool, typer.Option("--pooled", help="Also write a site `pooled` that holds all training images.")
]
Seed: TypeAlias = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of all random draws.")]
