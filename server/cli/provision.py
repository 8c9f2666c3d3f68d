"""Commands that make what a server and its sites need: folder, certificates, start-up kits, containers."""

from pathlib import Path
from typing import Annotated

import typer

from common.console.command_line import command
from common.errors import ConfigError
from server.cli.options import CONTAINERS, SERVER


def add_commands(app: typer.Typer) -> None:
    """Add `provision` to `consilium-server`."""
    command(
        app,
        "provision",
        SERVER,
        examples=[
            "consilium-server provision --example --out /srv/skin",
            "consilium-server provision /srv/skin/federation.yaml --out /srv/skin",
            "consilium-server provision /srv/skin/federation.yaml --out /srv/skin --with-images",
        ],
    )(_provision)


def add_container_commands(app: typer.Typer) -> None:
    """Add the commands for docker-compose.yml to `consilium-server`."""
    command(
        app,
        "compose",
        CONTAINERS,
        examples=[
            "consilium-server compose --sites 8 > docker-compose.override.yml",
            "consilium-server compose --sites 8 --gpus 4 > docker-compose.override.yml",
        ],
    )(_compose)
    command(
        app,
        "containers",
        CONTAINERS,
        examples=[
            "consilium-server containers --sites /sites --study /study.yaml --server /server --keys /keys "
            "--over /sites/over"
        ],
    )(_containers)


def _provision(
    federation: Annotated[
        Path | None, typer.Argument(metavar="FEDERATION.yaml", help="Settings of the federation.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The server's folder.")] = None,
    example: Annotated[
        bool,
        typer.Option(
            "--example",
            help="Print an example of FEDERATION.yaml. With --out, write it and the other examples to DIR.",
        ),
    ] = False,
    with_images: Annotated[
        bool,
        typer.Option(
            "--with-images",
            help="Save this version's container images for the sites, to DIR/kits. Needs Docker.",
        ),
    ] = False,
    wheel: Annotated[
        Path | None,
        typer.Option(
            "--wheel", metavar="FILE.whl", help="Put this wheel into every kit, for sites without Docker."
        ),
    ] = None,
) -> int:
    """Make or update a server's folder and the sites' start-up kits.

    Makes the CA and the server's certificate, and one start-up kit per site. Run it again after a change of
    FEDERATION.yaml: what has not changed stays as it is.
    """
    from common.files import private_files
    from server.provisioning import examples, startup_kit

    if example and federation is not None:
        raise ConfigError("--example makes a FEDERATION.yaml; leave one of the two out")
    if example and out is None:
        print(examples.federation_yaml(), end="")
        return 0
    if out is None or (federation is None and not example):
        raise ConfigError(
            "provision needs FEDERATION.yaml and --out DIR; --example makes a first FEDERATION.yaml"
        )
    if federation is None:
        if with_images or wheel is not None:
            raise ConfigError("--with-images and --wheel belong to the kits of a FEDERATION.yaml; give it")
        lines = examples.write_examples(out)
    else:
        lines = startup_kit.provision(federation, out, with_images=with_images, wheel=wheel)
    with private_files():
        for line in lines:
            print(line, flush=True)
    return 0


def _compose(
    sites: Annotated[int, typer.Option("--sites", metavar="N", help="Number of sites.")],
    gpus: Annotated[
        int, typer.Option("--gpus", metavar="N", help="Number of GPUs to share among the sites' trainers.")
    ] = 0,
    file: Annotated[Path, typer.Option("--file", metavar="FILE", help="The compose file to extend.")] = Path(
        "docker-compose.yml"
    ),
) -> int:
    """Print a compose file that changes the number of sites.

    Write it to docker-compose.override.yml, which `docker compose` reads beside docker-compose.yml.
    """
    from server.provisioning import compose

    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}; run this beside docker-compose.yml, or give --file"
        ) from error
    print(compose.override(text, sites, gpus), end="")
    return 0


def _containers(
    sites: Annotated[
        Path,
        typer.Option(
            "--sites", metavar="PATH", help="Folder written by `consilium-site simulate --containers`."
        ),
    ],
    study: Annotated[Path, typer.Option("--study", metavar="PATH", help="Settings of the study.")],
    server: Annotated[Path, typer.Option("--server", metavar="PATH", help="The server's folder.")],
    keys: Annotated[
        Path, typer.Option("--keys", metavar="PATH", help="Folder with one folder per site, by number.")
    ],
    over: Annotated[
        Path,
        typer.Option(
            "--over", metavar="PATH", help="File by which containers see that the study is over; removed now."
        ),
    ],
) -> int:
    """Make keys and settings for docker-compose.yml, which runs this itself.

    Makes a new CA, the server's certificate and each site's key. Earlier keys are replaced; earlier runs are kept.
    """
    from server.provisioning import compose

    compose.set_up(sites, study, server, keys, over)
    return 0
