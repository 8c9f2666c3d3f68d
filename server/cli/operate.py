"""Commands on a running server: start it, enrol sites, queue studies, watch them.

Every command but `up` only reads and writes files in the server's folder. So it works while the server runs and
while it does not, and its user needs no more rights than those on the files.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common import log
from common.bounded_log import set_aside
from common.console.command_line import COULD_NOT, DONE, INCOMPLETE, command, study_exit_code
from common.errors import ConfigError, ConsiliumError, LaunchError
from common.network.hosts import joined, plain_host
from common.polling import POLL_S, wait_until
from common.processes.launcher import Interrupted
from common.processes.tail import Tail
from server.cli import console
from server.cli.options import (
    CONSOLE_PORT,
    PUBLISHED_HELP,
    SERVER,
    STUDIES,
    ConsolePort,
    RunDir,
    ServerDir,
    SiteName,
    StartFrom,
    StudyFile,
)

if TYPE_CHECKING:
    from common.config import StudyConfig
    from server.deployment import queue
    from server.deployment.folder import ServerFolder
    from server.deployment.study_runner import StudyEnd

_WAIT_S = 120.0


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `consilium-server`."""
    command(
        app,
        "up",
        SERVER,
        examples=[
            "consilium-server up /srv/skin",
            "consilium-server up /srv/skin --metrics-port 9464",
            "consilium-server up /srv/skin --console",
            "consilium-server up /srv/skin --study study.yaml --exit-when-done",
        ],
    )(_up)
    command(app, "enrol", SERVER, examples=["consilium-server enrol /srv/skin north north.pub"])(_enrol)
    command(app, "revoke", SERVER, examples=["consilium-server revoke /srv/skin north"])(_revoke)
    command(app, "sites", SERVER, examples=["consilium-server sites /srv/skin"])(_sites)
    command(
        app,
        "run",
        STUDIES,
        examples=[
            "consilium-server run /srv/skin study.yaml",
            "consilium-server run /srv/skin study.yaml --wait",
        ],
    )(_run)
    command(
        app,
        "status",
        STUDIES,
        examples=[
            "consilium-server status /srv/skin",
            "consilium-server --json status runs/demo",
        ],
    )(_status)
    command(
        app,
        "logs",
        STUDIES,
        examples=["consilium-server logs /srv/skin --follow", "consilium-server logs /srv/skin demo"],
    )(_logs)
    command(app, "stop", STUDIES, examples=["consilium-server stop /srv/skin"])(_stop)
    command(app, "readmit", STUDIES, examples=["consilium-server readmit /srv/skin/runs/demo north"])(
        _readmit
    )


def _up(
    directory: ServerDir,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="STUDY.yaml", help="Run this study first.")
    ] = None,
    exit_when_done: Annotated[
        bool,
        typer.Option(
            "--exit-when-done",
            help="Exit when no study waits; exit code 0 only if the last one finished, 3 if it is incomplete.",
        ),
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", metavar="PORT", min=1, max=65535, help="Serve Prometheus metrics on this port."
        ),
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            "--metrics-host",
            metavar="ADDRESS",
            help="Address for the metrics. There is no password; the default is this machine only.",
        ),
    ] = "127.0.0.1",
    with_console: Annotated[
        bool, typer.Option("--console", help="Serve the console for a browser on this machine.")
    ] = False,
    console_port: ConsolePort = CONSOLE_PORT,
    console_published: Annotated[bool, typer.Option("--console-published", help=PUBLISHED_HELP)] = False,
    over: Annotated[
        Path | None,
        typer.Option(
            "--over",
            metavar="FILE",
            help="With --exit-when-done: write the outcome to FILE and end with exit code 0, so that a restarted "
            "container does not run a failed study again. Exit at once if FILE exists.",
        ),
    ] = None,
) -> int:
    """Run the server: sites connect, studies run one after the other.

    Runs until it is stopped (Ctrl-C, SIGTERM). A study that was running then, or when the machine lost power,
    resumes at the next start.
    """
    from common.config import StudyConfig
    from common.files import write_atomically
    from common.settings import load_settings
    from server.deployment import notices
    from server.deployment.folder import open_folder

    folder = open_folder(directory)

    def serve() -> "StudyEnd":
        first = None if study is None else load_settings(study, StudyConfig, "study")
        if metrics_port is not None:
            _serve_metrics(folder, metrics_host, metrics_port)
        with (
            notices.sending(folder),
            console.beside(folder, console_port, published=console_published)
            if with_console
            else nullcontext(),
        ):
            return _serve(folder, first, exit_when_done=exit_when_done)

    if over is None:
        outcome = serve()
        return study_exit_code(finished=outcome.finished, incomplete=outcome.incomplete)
    if not over.exists():
        try:
            outcome = serve()
            text = outcome.word if outcome.finished else f"{outcome.word}: {outcome.reason}"
        except ConsiliumError as error:
            text = f"failed: {error}"
        write_atomically(over, f"{text}\n".encode())
    return 0


def _serve(folder: "ServerFolder", study: "StudyConfig | None", *, exit_when_done: bool) -> "StudyEnd":
    """Run the server until it ends; returns how its last study ended."""
    from server.deployment import daemon
    from server.deployment.study_runner import StudyEnd

    try:
        return daemon.up(folder, study=study, once=exit_when_done)
    except Interrupted:
        if exit_when_done:
            raise
        log.event("the server is stopping; what was running goes on at the next start")
        return StudyEnd(True, "")


def _serve_metrics(folder: "ServerFolder", host: str, port: int) -> None:
    try:
        host = plain_host(host)  # an empty one would mean every address
    except ValueError as error:
        raise ConfigError(f"--metrics-host: {error}") from error
    try:
        from server.deployment import prometheus

        prometheus.serve(folder, host, port)
    except ImportError as error:
        raise LaunchError(
            "--metrics-port needs the package prometheus-client; install Consilium with its extra `server`"
        ) from error
    except OSError as error:
        raise LaunchError(
            f"{joined(host, port)} cannot be used for --metrics-port: {error.strerror}; give another"
        ) from error
    log.event(f"Prometheus metrics are served on {joined(host, port)}")


def _run(
    directory: ServerDir,
    study_file: StudyFile,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Show its log to the end; exit code 0 only if it finished, 3 if it is incomplete."
        ),
    ] = False,
    start_from: StartFrom = None,
) -> int:
    """Put a study into the queue.

    The server runs studies one after the other.
    """
    from common.config import StudyConfig
    from common.settings import load_settings
    from server.deployment import orders
    from server.deployment.folder import open_folder

    folder = open_folder(directory)
    study = load_settings(study_file, StudyConfig, "study")
    if start_from is not None:
        from server.storage import start_weights

        study = start_weights.started_from(study, start_from, folder.runs)
    entry = orders.start(folder, study, "command line")
    _print_queued(folder, study.name)
    if not wait:
        return 0
    try:
        return _wait(folder, entry)
    except Interrupted as interrupted:
        print(
            f"study {study.name} goes on at the server: `consilium-server logs {folder.root} -f` shows it, "
            f"`consilium-server stop {folder.root}` ends it",
            file=sys.stderr,
        )
        return interrupted.exit_code


def resume(folder: "ServerFolder", name: str) -> int:
    """Put a study that broke off or was stopped back into the queue. Raises ConfigError."""
    from server.deployment import orders

    orders.resume(folder, name, "command line")
    _print_queued(folder, name)
    return 0


def _print_queued(folder: "ServerFolder", name: str) -> None:
    from server.deployment import queue

    ahead = len(queue.waiting(folder)) - 1 + (queue.running(folder) is not None)
    turn = "it is next" if ahead <= 0 else f"{ahead} before it"
    down = "" if folder.is_up else f"; no server runs here yet: `consilium-server up {folder.root}`"
    print(f"{name} waits for its turn, {turn}{down}")


def _wait(folder: "ServerFolder", entry: "queue.Entry") -> int:
    """Show the log of a study until it is over; the exit code says whether it finished."""
    from server.deployment.study_runner import StudyEnd
    from server.storage import status

    run_dir, place = folder.runs / entry.name, folder.root / "running" / entry.path.name
    show, up_by = Tail(run_dir / "server.log"), time.monotonic() + _WAIT_S
    while entry.path.exists() or place.exists():
        if not entry.path.exists():  # what is there before its turn is another run's
            show()
        if folder.is_up:
            up_by = time.monotonic() + _WAIT_S
        elif time.monotonic() > up_by:
            raise LaunchError(
                f"no server has run here for {_WAIT_S:.0f} s; study {entry.name} goes on with the next "
                f"`consilium-server up {folder.root}`"
            )
        time.sleep(POLL_S)
    show()
    now = status.read_status(run_dir)
    if now is None:
        print("The study did NOT finish: it never began", file=sys.stderr)
        return COULD_NOT
    outcome = StudyEnd.of(now)
    if outcome.incomplete:
        print(f"The study finished, but it is INCOMPLETE: {now.reason}", file=sys.stderr)
    elif not outcome.finished:
        print(f"The study did NOT finish: {now.reason}", file=sys.stderr)
    return study_exit_code(finished=outcome.finished, incomplete=outcome.incomplete)


def _enrol(
    directory: ServerDir,
    site: SiteName,
    public_key: Annotated[
        Path, typer.Argument(metavar="SITE.pub", help="File that `consilium-site key` wrote at the site.")
    ],
) -> int:
    """Let a site connect, from now on.

    If the server does not run, from its next start.
    """
    from server.deployment import orders, site_keys
    from server.deployment.folder import open_folder

    folder = open_folder(directory)
    key = orders.enrol(folder, site, public_key, "command line")
    print(f"{site} may connect, with the key\n  {key.fingerprint}")
    print("Compare it with what the site reads out: `consilium-site key` printed it there.")
    _wait_until(
        folder, lambda: key.pem in site_keys.nodes(folder.database), "the server has not taken the key"
    )
    return 0


def _revoke(directory: ServerDir, site: SiteName) -> int:
    """Cut a site off, at once and for good.

    It needs a new key to come back.
    """
    from server.deployment import orders, site_keys
    from server.deployment.folder import open_folder

    folder = open_folder(directory)
    key = orders.revoke(folder, site, "command line")
    _wait_until(folder, lambda: key.pem not in site_keys.nodes(folder.database), f"{site} is not cut off")
    print(f"{site} is cut off; its key {key.fingerprint} is never accepted again")
    return 0


def _wait_until(folder: "ServerFolder", done: Callable[[], bool], not_done: str) -> None:
    """Wait until a running server did what a file asks. Raises LaunchError if it does not."""
    if not wait_until(lambda: done() or not folder.is_up, _WAIT_S):
        raise LaunchError(f"{not_done} after {_WAIT_S:.0f} s; {folder.root / 'logs'} tells why")


def _sites(directory: ServerDir) -> int:
    """List the sites: key, enrolled since, online, last seen."""
    from server.cli import tables
    from server.deployment.folder import open_folder
    from server.deployment.server_overview import read_sites

    tables.print_sites(read_sites(open_folder(directory)))
    return 0


def _status(
    context: typer.Context,
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of one run, or the server's folder.")
    ],
) -> int:
    """Show the state of a run, or of a server.

    Shows study, round, which sites have answered, which are late by how much, bytes, memory, last checkpoint.
    With `consilium-server --json status` as JSON. Exit code 1 if the study failed, its server is gone, or the
    server is not up; 3 if the run is finished but incomplete.
    """
    from server.cli import tables
    from server.deployment import overview, server_overview
    from server.deployment.folder import open_folder
    from server.storage import status

    if (run_dir / "federation.yaml").exists():
        server = server_overview.read_server(open_folder(run_dir))
        if context.obj.json:
            print(server.model_dump_json(indent=1))
        else:
            tables.print_server(server)
        return 0 if server.up else 1
    now = overview.read_run(run_dir)
    if context.obj.json:
        print(now.model_dump_json(indent=1))
    else:
        tables.print_run(now)
    if now.stage == status.INCOMPLETE:
        return INCOMPLETE
    return COULD_NOT if now.stage in ("failed", "crashed") else DONE


def _readmit(run_dir: RunDir, site: SiteName) -> int:
    """Readmit a site that was set aside, from the next round on.

    A study that is running need not be stopped.
    """
    from server.deployment import orders

    now = orders.readmit(run_dir, site, "command line")
    when = "once it is resumed, in the next round" if now is not None and now.is_over else "in the next round"
    print(f"{site} gets a plan again {when} of {run_dir.name}")
    return 0


def _logs(
    directory: ServerDir,
    study: Annotated[
        str | None,
        typer.Argument(metavar="STUDY", help="Name of a study; without it the one that runs or ran last."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the study is over.")] = False,
) -> int:
    """Show the log of a study's server."""
    from server.deployment import queue
    from server.deployment.folder import open_folder

    folder = open_folder(directory)
    name = study or _latest(folder)
    if study is not None:
        queue.require_run(folder, study)
    path = folder.runs / name / "server.log"
    Tail(set_aside(path))()
    show = Tail(path)
    show()
    while follow and (now := queue.running(folder)) is not None and now.name == name:
        time.sleep(POLL_S)
        show()
    return 0


def _latest(folder: "ServerFolder") -> str:
    from server.deployment import queue

    if (name := queue.latest(folder)) is None:
        raise ConfigError(f"no study has run in {folder.root} yet")
    return name


def _stop(directory: ServerDir) -> int:
    """Stop the study that runs; `resume` goes on with it."""
    from server.deployment import orders
    from server.deployment.folder import open_folder
    from server.storage import checkpoint

    folder = open_folder(directory)
    now = orders.stop(folder, "command line")
    _wait_until(folder, lambda: not now.path.exists(), f"study {now.name} has not stopped")
    again = (
        f"`consilium-server resume {folder.root} {now.name}` goes on with it"
        if checkpoint.latest(folder.runs / now.name) is not None
        else f"it had no round, so `consilium-server run {folder.root}` with its file begins it again"
    )
    print(f"study {now.name} is stopped; {again}")
    return 0
