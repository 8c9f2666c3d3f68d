"""The operator's commands on a server's folder: what each is called, and what it does.

Every command but `up` only reads and writes files in the folder, so it works while the server runs
and while it does not, and its user needs no more rights than those on the files.
"""

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from common import log
from common.config import StudyConfig
from common.errors import ConfigError, ConsiliumError, LaunchError
from common.processes import Interrupted
from common.settings import Frozen, load_settings
from common.tail import Tail
from common.weights import write_atomically
from server import enrolled, examples, host, kits, overview, queue, status, wishes
from server.folder import ServerFolder, open_folder

Handler: TypeAlias = Callable[[ServerFolder, argparse.Namespace], int]

_LOOK_S, _WAIT_S = 0.2, 120.0


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands of this file to `consilium-server`."""

    def command(name: str, run: Handler, summary: str, more: str = "") -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name, help=summary, description=more or f"{summary[0].upper()}{summary[1:]}."
        )
        parser.add_argument("folder", type=Path, metavar="DIR", help="the server's folder")
        parser.set_defaults(run=lambda options: run(open_folder(options.folder), options))
        return parser

    up = command(
        "up",
        _up,
        "run the server: sites connect, studies are run in turn",
        "Runs until it is stopped (Ctrl-C, SIGTERM). What was running then, or when the machine lost "
        "power, goes on at the next start.",
    )
    up.add_argument("--study", type=Path, metavar="STUDY.yaml", help="run this one first")
    up.add_argument(
        "--exit-when-done",
        action="store_true",
        help="end when no study waits; exit code 0 only if the last one finished",
    )

    up.add_argument("--metrics-port", type=int, metavar="PORT", help="answer Prometheus here")
    up.add_argument(
        "--metrics-host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="who may ask; there is no password (default %(default)s, this machine)",
    )

    _add_provision(commands)
    up.add_argument(
        "--over",
        type=Path,
        metavar="FILE",
        help="with --exit-when-done: write how it ended to FILE and end with exit code 0, so that whoever starts a "
        "crashed server again leaves a failed study alone; end at once if FILE is there",
    )

    run = command(
        "run", _run, "let a study wait for its turn", "The server runs studies one after the other."
    )
    run.add_argument("study", type=Path, metavar="STUDY.yaml")
    run.add_argument(
        "--wait", action="store_true", help="show its log to the end; exit code 0 only if it finished"
    )

    enrol = command(
        "enrol", _enrol, "let a site connect", "From now on, or from the next start of the server."
    )
    enrol.add_argument("site", metavar="SITE")
    enrol.add_argument(
        "key", type=Path, metavar="SITE.pub", help="what `consilium-site key` wrote at the site"
    )

    revoke = command(
        "revoke", _revoke, "cut a site off, at once and for good: it needs a new key to come back"
    )
    revoke.add_argument("site", metavar="SITE")

    command("sites", _sites, "list the sites: key, enrolled since, online, last seen")

    logs = command(
        "logs", _logs, "show what a study's server said", "Without STUDY, the one that runs or ran last."
    )
    logs.add_argument("study", nargs="?", metavar="STUDY")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the study is over")

    command("stop", _stop, "end the study that runs; `resume` goes on with it")


def _add_provision(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "provision",
        help="make, or bring up to date, a server's folder and the sites' start-up kits",
        description="Makes the CA and the server's certificate, and one start-up kit per site. Run again after a "
        "change of FEDERATION.yaml: what has not changed stays as it is.",
    )
    parser.add_argument("federation", type=Path, nargs="?", metavar="FEDERATION.yaml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the server's folder")
    parser.add_argument(
        "--example",
        action="store_true",
        help="print an example of FEDERATION.yaml; with --out, write it and the other examples to DIR",
    )
    parser.set_defaults(run=_provision)


def _provision(options: argparse.Namespace) -> int:
    if options.example and options.federation is not None:
        raise ConfigError("--example makes a FEDERATION.yaml; leave one of the two out")
    if options.example and options.out is None:
        print(examples.federation_yaml(), end="")
        return 0
    if options.out is None or (options.federation is None and not options.example):
        raise ConfigError(
            "provision needs FEDERATION.yaml and --out DIR; --example makes a first FEDERATION.yaml"
        )
    for line in (
        examples.write_examples(options.out)
        if options.example
        else kits.provision(options.federation, options.out)
    ):
        print(line)
    return 0


def _up(folder: ServerFolder, options: argparse.Namespace) -> int:
    over: Path | None = options.over
    if over is None:
        return _serve(folder, options)
    if not over.exists():
        try:
            finished, reason = _serve(folder, options) == 0, ""
        except ConsiliumError as error:
            finished, reason = False, f": {error}"
        write_atomically(over, f"{'finished' if finished else 'failed'}{reason}\n".encode())
    return 0


def _serve(folder: ServerFolder, options: argparse.Namespace) -> int:
    study = None if options.study is None else load_settings(options.study, StudyConfig, "study")
    if options.metrics_port is not None:
        _serve_metrics(folder, options.metrics_host, options.metrics_port)
    try:
        outcome = host.up(folder, study=study, once=options.exit_when_done)
    except Interrupted:
        if options.exit_when_done:
            raise
        log.event("the server was told to end; what was running goes on at the next start")
        return 0
    return 0 if outcome.finished else 1


def _serve_metrics(folder: ServerFolder, host: str, port: int) -> None:
    try:
        from server import monitoring

        monitoring.serve(folder, host, port)
    except ImportError as error:
        raise LaunchError(
            "--metrics-port needs the package prometheus-client; install Consilium with its extra `server`"
        ) from error
    except OSError as error:
        raise LaunchError(
            f"{host}:{port} cannot be had for --metrics-port: {error.strerror}; give another"
        ) from error
    log.event(f"Prometheus may ask on {host}:{port}")


def _run(folder: ServerFolder, options: argparse.Namespace) -> int:
    study = load_settings(options.study, StudyConfig, "study")
    if missing := sorted(set(study.sites.all) - enrolled.enrolled(folder).keys()):
        raise ConfigError(
            f"the study names {', '.join(missing)}, whose keys are not enrolled; `consilium-server enrol` "
            "them, or leave them out of the study"
        )
    entry = queue.put(folder, study)
    _say_queued(folder, study.name)
    return _wait(folder, entry) if options.wait else 0


def resume(folder: ServerFolder, name: str) -> int:
    """Let a study that broke off or was stopped go on. Raises ConfigError."""
    queue.put_back(folder, name)
    _say_queued(folder, name)
    return 0


def _say_queued(folder: ServerFolder, name: str) -> None:
    ahead = len(queue.waiting(folder)) - 1 + (queue.running(folder) is not None)
    turn = "it is next" if ahead <= 0 else f"{ahead} before it"
    down = "" if folder.is_up else f"; no server runs here yet: `consilium-server up {folder.root}`"
    print(f"{name} waits for its turn, {turn}{down}")


def _wait(folder: ServerFolder, entry: queue.Entry) -> int:
    """Show the log of a study until it is over; the exit code says whether it finished."""
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
        time.sleep(_LOOK_S)
    show()
    now = status.read_status(run_dir)
    if now is not None and now.status == "finished":
        return 0
    print(f"The study did NOT finish: {now.reason if now else 'it never began'}", file=sys.stderr)
    return 1


def _enrol(folder: ServerFolder, options: argparse.Namespace) -> int:
    key = enrolled.enrol(folder, options.site, options.key)
    print(f"{options.site} may connect, with the key\n  {key.fingerprint}")
    print("Compare it with what the site reads out: `consilium-site key` printed it there.")
    _follow(folder, lambda: key.pem in enrolled.nodes(folder.database), "the server has not taken the key")
    return 0


def _revoke(folder: ServerFolder, options: argparse.Namespace) -> int:
    key = enrolled.revoke(folder, options.site)
    _follow(folder, lambda: key.pem not in enrolled.nodes(folder.database), f"{options.site} is not cut off")
    print(f"{options.site} is cut off; its key {key.fingerprint} is never taken again")
    return 0


def _follow(folder: ServerFolder, done: Callable[[], bool], not_done: str) -> None:
    """Wait until a running server did what a file asks. Raises LaunchError if it does not."""
    until = time.monotonic() + _WAIT_S
    while folder.is_up and not done():
        if time.monotonic() > until:
            raise LaunchError(f"{not_done} after {_WAIT_S:.0f} s; {folder.root / 'logs'} tells why")
        time.sleep(_LOOK_S)


def _sites(folder: ServerFolder, _options: argparse.Namespace) -> int:
    keys, known = enrolled.enrolled(folder), enrolled.nodes(folder.database)
    up = folder.is_up
    for site in sorted({*folder.config.sites, *keys}):
        key = keys.get(site)
        node = None if key is None else known.get(key.pem)
        about = folder.config.sites.get(site)
        name = f"{site} ({about.institution})" if about and about.institution else site
        if key is None:
            print(f"{name}: no key enrolled")
            continue
        since = (
            "not yet known to the server" if node is None else f"enrolled {node.enrolled:%Y-%m-%d %H:%M} UTC"
        )
        here = "online" if node is not None and node.online and up else "offline"
        seen = "never seen" if node is None or node.seen is None else f"last seen {_ago(node.seen)}"
        print(f"{name}: {here}, {seen}, {since}, key {key.fingerprint}")
    return 0


def _ago(moment: datetime) -> str:
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    return "now" if seconds < 60 else f"{overview.span(seconds)} ago"


def _logs(folder: ServerFolder, options: argparse.Namespace) -> int:
    name = options.study or _latest(folder)
    show = Tail(folder.runs / name / "server.log")
    show()
    while options.follow and (now := queue.running(folder)) is not None and now.name == name:
        time.sleep(_LOOK_S)
        show()
    return 0


def _latest(folder: ServerFolder) -> str:
    if (name := queue.latest(folder)) is None:
        raise ConfigError(f"no study has run in {folder.root} yet")
    return name


def _stop(folder: ServerFolder, _options: argparse.Namespace) -> int:
    now = queue.running(folder)
    if now is None:
        raise ConfigError("no study is running")
    if not folder.is_up:
        raise ConfigError(
            f"no server runs here, so nothing runs; study {now.name} goes on at the next `consilium-server up`"
        )
    wishes.ask_to_stop(folder.runs / now.name)
    _follow(folder, lambda: not now.path.exists(), f"study {now.name} has not stopped")
    print(f"study {now.name} is stopped; `consilium-server resume {folder.root} {now.name}` goes on with it")
    return 0


class ServerNow(Frozen):
    """One server, now."""

    federation: str
    up: bool
    enrolled: tuple[str, ...]
    online: tuple[str, ...]
    waiting: tuple[str, ...]
    """Studies, the next one first."""
    study: overview.Overview | None
    """That runs, or ran last."""


def look(folder: ServerFolder) -> ServerNow:
    """How a server stands: sites, the study that runs or ran last, what waits."""
    keys, known, up = enrolled.enrolled(folder), enrolled.nodes(folder.database), folder.is_up
    name = queue.latest(folder)
    return ServerNow(
        federation=folder.config.name,
        up=up,
        enrolled=tuple(keys),
        online=tuple(site for site, key in keys.items() if up and key.pem in known and known[key.pem].online),
        waiting=tuple(entry.name for entry in queue.waiting(folder)),
        study=None if name is None else overview.look(folder.runs / name, flwr_home=folder.flwr_home),
    )


def text(now: ServerNow) -> str:
    """The same for a person."""
    up = "up" if now.up else "NOT running; `consilium-server up` starts it"
    lines = [
        f"{now.federation}: the server is {up}",
        f"{len(now.online)} of {len(now.enrolled)} enrolled sites online",
    ]
    if now.up and (lacking := [site for site in now.enrolled if site not in now.online]):
        lines[-1] += f"; not {', '.join(lacking)}"
    if now.waiting:
        lines.append(f"waiting: {', '.join(now.waiting)}")
    if now.study is not None:
        lines += ["", overview.text(now.study)]
    return "\n".join(lines)
