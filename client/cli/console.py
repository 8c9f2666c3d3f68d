"""Command for the site's console: pages in a browser at the hospital."""

import threading
from typing import Annotated

import typer

from client.cli.options import GOVERNANCE, SiteFile
from common import log
from common.console.command_line import DONE, command
from common.console.terminal import is_terminal
from common.errors import LaunchError
from common.processes.launcher import Interrupted, interruptible

PORT = 8766

_KINDS = ("pending", "approved", "refused")


def add_commands(app: typer.Typer) -> None:
    """Add the command of this file to `consilium-site`."""
    command(
        app,
        "console",
        GOVERNANCE,
        examples=["consilium-site console site.yaml", "consilium-site console site.yaml --port 9000"],
    )(_console)


def _console(
    settings: SiteFile,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port of the console.")
    ] = PORT,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="In a container whose port is published on loopback alone: listen on every address of it.",
        ),
    ] = False,
) -> int:
    """Serve pages for a browser on this machine: what is trained, what has left, and studies to decide about.

    It reads the audit log and the approvals. The kernel keeps this process from every image and from other machines
    (Landlock, Linux 5.13 and 6.7); without that it says so. The token for the login is printed once, on a terminal, and
    lies in `state_dir`, under console/token. Runs until it is stopped (Ctrl-C, SIGTERM).
    """
    from client.config import load_site

    try:
        from client.console.app import application
        from client.console.confine import FOLDER, confine
        from client.governance import audit
        from common.web import access, serve
    except ImportError as error:
        raise LaunchError(
            f"the console needs the package {error.name}; install Consilium with its extra `trainer`"
        ) from error
    site, place = load_site(settings), serve.Place(port=port, published=published)
    file = site.state_dir / FOLDER / "token"
    for folder in (file.parent, *(site.state_dir / "approvals" / kind for kind in _KINDS)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (site.state_dir / audit.FILE).touch(mode=0o600)
    token, is_new = access.load_token(file)
    app = application(site, access.Sessions(token), place.address)
    try:
        with interruptible(), serve.serving(app, place, lambda: confine(site.state_dir)):
            log.event(f"the console is on {place.url}; its token is in {file}")
            if is_new and is_terminal():  # a journal keeps what a service prints
                print(f"The token for the console, shown this once:\n  {token}", flush=True)
            _wait()
    except Interrupted:
        log.event("the console has ended")
    return DONE


def _wait() -> None:
    """Wait for the signal that ends this process."""
    threading.Event().wait()
