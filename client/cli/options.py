"""Arguments and options that several commands of `consilium-site` take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from common.errors import ConfigError
from common.network import proxies

if TYPE_CHECKING:
    from common.config import StudyConfig

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
AdaptTo: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--adapt-to",
        metavar="DIR",
        help="Images of the source that is predicted, without labels: batch normalisation takes its statistics "
        "from them. For a source that training has not seen.",
    ),
]
Seed: TypeAlias = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of all random draws.")]

Through: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--through",
        metavar="URL",
        help="Reach the server through this proxy, `http://HOST:PORT`, whatever gateway.yaml says.",
    ),
]


def through_proxy(url: str) -> str:
    """The proxy of `--through`. Raises ConfigError."""
    try:
        return proxies.proxy_url(url)
    except ValueError as error:
        raise ConfigError(f"--through: {error}") from error


def load_study(path: Path | None) -> "StudyConfig | None":
    """The study of `--study`, if one was given. Raises ConfigError."""
    if path is None:
        return None
    from common.config import StudyConfig
    from common.settings import load_settings

    return load_settings(path, StudyConfig, "study")
