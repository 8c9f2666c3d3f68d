"""Commands for the console: pages in a browser for the person who runs the server."""

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common import log
from common.console.command_line import DONE, command
from common.console.terminal import is_terminal
from common.errors import LaunchError
from common.processes.launcher import Interrupted
from server.cli.options import CONSOLE_PORT, PUBLISHED_HELP, SERVER, ServerDir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from common.web.serve import Place
    from server.deployment.folder import ServerFolder


def add_commands(app: typer.Typer) -> None:
    """Add the command of this file to `consilium-server`."""
    command(
        app,
        "console",
        SERVER,
        examples=[
            "consilium-server console /srv/skin",
            "consilium-server console /srv/skin --host server.example --cert tls.pem --key tls.key",
            "docker exec SERVER consilium-server console /server --published",
        ],
    )(_console)


@contextmanager
def beside(folder: "ServerFolder", port: int, *, published: bool = False) -> "Iterator[None]":
    """Serve the console under the names of loopback as long as this lasts. Raises ConfigError, LaunchError."""
    from common.web.serve import Place

    stop = _start(folder, Place(port=port, published=published))
    try:
        yield
    finally:
        stop()


def _console(
    directory: ServerDir,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port of the console.")
    ] = CONSOLE_PORT,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Another address of this machine; needs --cert and --key."
        ),
    ] = "127.0.0.1",
    cert: Annotated[
        Path | None, typer.Option("--cert", metavar="FILE", help="Certificate (PEM) for another address.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Private key of the certificate.")
    ] = None,
    published: Annotated[bool, typer.Option("--published", help=PUBLISHED_HELP)] = False,
) -> int:
    """Serve pages for a browser: studies, rounds as they happen, sites, logs, start and stop.

    It works beside a running `up` and without one. The token for the login is printed once, on a terminal,
    and lies in DIR/console.token. Runs until it is stopped (Ctrl-C, SIGTERM).
    """
    from common.web.serve import Place
    from server.deployment.folder import open_folder

    stop = _start(open_folder(directory), Place(host, port, cert, key, published))
    try:
        _wait()
    except Interrupted:
        log.event("the console is stopping; studies go on")
    finally:
        stop()
    return DONE


def _wait() -> None:
    """Wait for the signal that ends this process."""
    threading.Event().wait()


def _start(folder: "ServerFolder", place: "Place") -> "Callable[[], None]":
    try:
        from common.web import access, serve
        from server.console.app import application
    except ImportError as error:
        raise LaunchError(
            f"the console needs the package {error.name}; install Consilium with its extra `server`"
        ) from error
    address, file = place.address, folder.root / "console.token"
    token, is_new = access.load_token(file)
    stop = serve.start(application(folder, access.Sessions(token), address), place)
    log.event(f"the console is on {place.url}; its token is in {file}")
    if is_new and is_terminal():  # a journal keeps what a service prints
        print(f"The token for the console, shown this once:\n  {token}", flush=True)
    return stop
