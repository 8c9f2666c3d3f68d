"""Commands that run a site: its key, its gateway, its trainer, and what they are doing now."""

import contextlib
import logging
import os
import pwd
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from client.cli.options import (
    SETTING_UP,
    TAKING_PART,
    GatewayFile,
    SiteFile,
    Through,
    TrainerSocket,
    Until,
    through_proxy,
)
from common import log
from common.console import terminal
from common.console.command_line import command
from common.errors import ConfigError
from common.network import unix_sockets
from common.polling import POLL_S


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `consilium-site`."""
    command(
        app,
        "key",
        SETTING_UP,
        examples=["consilium-site key .", "consilium-site key . --renew"],
    )(_key)
    command(
        app,
        "mounts",
        SETTING_UP,
        examples=[
            "consilium-site mounts site.yaml",
            "consilium-site mounts - --kit /opt/consilium/north < site.yaml",
        ],
    )(_mounts)
    command(
        app,
        "trainer",
        TAKING_PART,
        examples=[
            "consilium-site trainer site.yaml",
            "consilium-site --json trainer site.yaml --socket link/trainer.sock",
        ],
    )(_trainer)
    command(app, "gateway", TAKING_PART, examples=["consilium-site gateway ."])(_gateway)
    command(app, "way-out", TAKING_PART, examples=["consilium-site way-out . --listen 0.0.0.0:3128"])(
        _way_out
    )
    command(app, "egress", SETTING_UP, examples=["consilium-site egress ."])(_egress)
    command(app, "status", TAKING_PART, examples=["consilium-site status site.yaml"])(_status)


def _key(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The unpacked start-up kit.")],
    renew: Annotated[
        bool, typer.Option("--renew", help="Replace the key, for example after it was revoked.")
    ] = False,
) -> int:
    """Make this site's key pair. The private key stays on this machine.

    Writes site.key and site.pub to DIR. Only site.pub goes to the study operator. Read the fingerprint to the
    operator over the phone. An existing key is kept.
    """
    from common import keys

    private = folder / "site.key"
    if renew or not private.exists():
        folder.mkdir(parents=True, exist_ok=True)
        keys.make_site_key(folder, "site")
    print(f"{folder / 'site.pub'}  goes to the study operator\n{private}  stays here, and goes nowhere else")
    print(f"Read out over the phone:\n  {keys.fingerprint_of_private(private)}")
    return 0


def _mounts(
    settings: Annotated[
        Path,
        typer.Argument(metavar="SITE.yaml", help="Settings of this site; - reads them from standard input."),
    ],
    kit: Annotated[
        Path | None,
        typer.Option(
            "--kit", metavar="DIR", help="Folder of the start-up kit on the machine; else that of SITE.yaml."
        ),
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", metavar="NAME", help="Name of the site that the kit was made for.")
    ] = None,
    form: Annotated[
        Literal["compose", "trainer-unit", "gateway-unit"],
        typer.Option("--form", help="A file for compose, or a drop-in for one of the two systemd units."),
    ] = "compose",
) -> int:
    """Print what this site's container must see of the machine.

    Every folder and file that the settings name, each once. `site.sh` asks this before it starts a container.
    Nothing is looked up on the disk.
    """
    from client.config import SiteConfig, mounts
    from common.formats import yaml_text
    from common.settings import load_settings, parse_settings

    if str(settings) == "-":
        try:
            text = yaml_text.decode(sys.stdin.buffer.read())
        except yaml_text.YamlError as error:
            raise ConfigError(f"site.yaml cannot be read: {error}") from error
        config = parse_settings(text, SiteConfig, "site", "site.yaml")
    else:
        config = load_settings(settings, SiteConfig, "site")
    found = mounts.mounts(config, (kit or settings.parent).absolute(), site)
    match form:
        case "compose":
            print(mounts.compose(config, found), end="")
        case "trainer-unit":
            print(mounts.trainer_unit(found), end="")
        case "gateway-unit":
            print(mounts.gateway_unit(found), end="")
    return 0


def _trainer(
    settings: SiteFile,
    socket: TrainerSocket = None,
    until: Until = None,
    gateway_user: Annotated[
        str | None,
        typer.Option(
            "--gateway-user",
            metavar="USER",
            help="User of this machine as whom the gateway runs, if it is another one. The socket is then open to "
            "its folder's group, and to this user alone of them.",
        ),
    ] = None,
    turn: Annotated[
        int,
        typer.Option(
            "--turn",
            metavar="N",
            min=0,
            help="Number of this trainer among several on one machine, from 0. With `device: auto` they take turns "
            "over its GPUs.",
        ),
    ] = 0,
    no_network: Annotated[
        bool,
        typer.Option(
            "--no-network",
            help="Give up the network first, for a container that has one (a pod's). Linux alone.",
        ),
    ] = False,
) -> int:
    """Run this site's trainer until it is stopped.

    Listens on a Unix socket for plans from this site's gateway and answers them.
    """
    if no_network:
        from common.processes.no_network import give_up_network

        give_up_network()
    from client.config import load_site
    from client.gateway import link
    from client.trainer import Trainer

    site = load_site(settings)
    socket = socket or site.socket
    if socket is None:
        raise ConfigError(f"{settings} names no socket; add `socket: PATH`, or give one with --socket")
    if (why := unix_sockets.too_long(socket)) is not None:
        raise ConfigError(why)  # before the images are read
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    users = None if gateway_user is None else {os.geteuid(), _number_of(gateway_user)}
    with contextlib.ExitStack() as opened:
        inner = socket if users is None else opened.enter_context(_door(socket, users))
        trainer = Trainer(site, turn=turn)
        server = link.serve(trainer.answer, inner, trainer.audit_head)
        _wait(site.name, stopped, until)
        server.stop(grace=1.0).wait()
    socket.unlink(missing_ok=True)
    # Not `return`: Python would wait for a plan in progress, whose answer no gateway awaits any more.
    logging.shutdown()
    os._exit(0)


@contextlib.contextmanager
def _door(socket: Path, users: set[int]) -> Iterator[Path]:
    """A door for these users on `socket`; yields the socket behind it, which only this user can reach."""
    from common.network.peer_door import PeerDoor

    folder = unix_sockets.short_folder("trainer.sock")
    inner = folder / "trainer.sock"

    def refused(user: int) -> None:
        log.warn(f"a program of user {user} tried to reach the trainer and was turned away")

    door = PeerDoor(socket, inner, users, refused)
    door.open()
    try:
        yield inner
    finally:
        door.close()
        shutil.rmtree(folder, ignore_errors=True)


def _number_of(user: str) -> int:
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(
            f"--gateway-user: this machine has no user {user}; make it, or name another"
        ) from None


def _wait(site: str, stopped: threading.Event, until: Path | None) -> None:
    log.event(f"{site}: ready, listening on a Unix socket")
    while not stopped.wait(POLL_S):
        if until is not None and until.exists():
            log.event(f"{site}: the federation is over")
            return


def _egress(settings: GatewayFile) -> int:
    """Print a drop-in for the gateway's systemd unit, with which it can call the server alone.

    Names are looked up now: a unit takes addresses.
    """
    from client import egress
    from client.gateway.settings import load_gateway

    config = load_gateway(settings)
    print(egress.unit(config.server, config.proxy), end="")
    return 0


def _way_out(
    settings: GatewayFile,
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDRESS:PORT", help="Where the gateway asks for the way out.")
    ] = "0.0.0.0:3128",
) -> int:
    """Join connections to this site's server, and to no other machine, until it is stopped.

    A proxy for a gateway in a container without a way out. It needs no key and reads nothing of what passes.
    """
    import asyncio

    from client import egress
    from client.gateway.settings import load_gateway
    from common.network import hosts

    config = load_gateway(settings)
    host, port = hosts.divided(listen)

    async def serve() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        async with await egress.WayOut(config.server, config.proxy).listen(host, port):
            log.event(f"{config.site}: connections are joined to {config.server} and to nothing else")
            await stopped.wait()

    try:
        asyncio.run(serve())
    except OSError as error:
        raise ConfigError(f"--listen {listen} cannot be used: {error.strerror}; give another") from error
    return 0


def _gateway(
    settings: GatewayFile,
    socket: TrainerSocket = None,
    until: Until = None,
    through: Through = None,
) -> int:
    """Run this site's gateway until it is stopped.

    Connects out to the server and passes plans on to the trainer's socket. It connects again, without end, when the
    connection is lost. It sees no image and needs no torch.
    """
    from client.gateway import relay
    from client.gateway.settings import load_gateway
    from common.processes.launcher import Interrupted, interruptible

    config = load_gateway(settings)
    if socket is not None:
        config = config.model_copy(update={"socket": socket.absolute()})
    if through is not None:
        config = config.model_copy(update={"proxy": through_proxy(through)})
    try:
        with interruptible():
            relay.run(config, until)
    except Interrupted:
        pass
    log.event(f"{config.site}: the gateway has ended")
    return 0


def _status(settings: SiteFile, socket: TrainerSocket = None) -> int:
    """Show what this site is doing, since when, and what has left it.

    Reads the audit log and asks the trainer's socket. Nothing else is asked.
    """
    from client.config import load_site
    from client.governance import status
    from client.privacy import budget

    site = load_site(settings)
    text = status.describe(
        site.name,
        site.state_dir,
        socket or site.socket,
        spent=budget.lines(site.state_dir, site.policy.privacy, site.ledger_witness),
    )
    first, newline, rest = text.partition("\n")
    terminal.print_styled(first, "bold red" if "NOT running" in first else "bold")
    if newline:
        print(rest)
    return 0
