"""A whole federation as processes on this machine.

The same programs as between institutions: a SuperLink with TLS and site keys, and for each
site a SuperNode and a trainer joined by a Unix socket. Only the addresses are loopback's and
the keys are made on the way. So a demo, a simulation and an experiment exercise what
hospitals run, and a figure from here is a figure of the real thing.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import log
from common.config import StudyConfig
from common.errors import LaunchError
from common.settings import to_yaml
from common.weights import write_atomically
from server import bundle, provision, status
from server.processes import (
    Processes,
    accepts_connections,
    claim_port,
    flower_command,
    free_ports,
    port_is_taken,
)

FLEET_PORT = 9092
"""Where sites connect; Flower's own default."""
CONNECTION = "consilium"

_START_S = 90.0
_TRAINER_START_S = 180.0  # importing torch on a busy, cold disk


@dataclass(frozen=True)
class LocalSite:
    """One hospital on this machine: its name and its site.yaml, without a socket in it."""

    name: str
    settings: Path


@dataclass(frozen=True)
class Outcome:
    """How a study ended."""

    finished: bool
    reason: str


def run_local(
    study: StudyConfig,
    sites: list[LocalSite],
    run_dir: Path,
    *,
    port: int | None = None,
    synthetic: bool = False,
    leave_out: Collection[str] = (),
    resume: bool = False,
) -> Outcome:
    """Run `study` with these sites; returns when it finished or failed.

    `resume` goes on from the last checkpoint in `run_dir` instead of setting that run aside.

    Every process started here has ended on return, on an error and on Ctrl-C. `port` None
    takes Flower's default port, or a free one if that is taken. Sites in `leave_out` are
    enrolled but never start, to see what a study does without them. Raises LaunchError.
    """
    known = {site.name: site for site in sites}
    if missing := sorted(set(study.sites.all) - known.keys()):
        raise LaunchError(
            f"the study names {', '.join(missing)}, but there are settings only for {', '.join(sorted(known))}"
        )
    if strange := sorted(set(leave_out) - set(study.sites.all)):
        raise LaunchError(f"{', '.join(strange)} cannot be left out: the study does not name it")
    work = run_dir / "federation"
    with (
        _claimed_port(port) as fleet_port,
        _sockets([name for name in study.sites.all if name not in leave_out]) as sockets,
        _started(work, sockets) as processes,
    ):
        if resume:
            shutil.rmtree(work, ignore_errors=True)  # keys, logs and Flower's files of the run that broke off
            (run_dir / status.FILE).unlink(missing_ok=True)
        elif run_dir.exists() and any(run_dir.iterdir()):
            _set_aside(run_dir)
        work.mkdir(parents=True, exist_ok=True)
        told = _size(run_dir / "server.log")
        started = {name: (known[name].settings, socket) for name, socket in sockets.items()}
        node_ids = _start(study, started, work, processes, fleet_port)
        settings = _write_server_settings(study, run_dir, node_ids, synthetic=synthetic)
        _flwr(
            processes, "run", str(bundle.stage(work / "app")), CONNECTION,
            "--run-config", f'server="{settings.resolve()}"',
        )  # fmt: skip
        return _follow(study, run_dir, processes, told)


def _start(
    study: StudyConfig,
    sites: Mapping[str, tuple[Path, Path]],
    work: Path,
    processes: Processes,
    fleet_port: int,
) -> dict[str, int]:
    """Start the server and `sites`, by name settings and socket; returns each site's Flower node."""
    identity = provision.make_server_identity(work / "keys", ["localhost", "127.0.0.1"])
    keys = {name: provision.make_site_key(work / "keys", name) for name in study.sites.all}
    control_port, *gateway_ports = free_ports(1 + len(sites))
    _write_connection(Path(processes.env["FLWR_HOME"]), control_port, identity.ca)

    log.event(f"starting the server on port {fleet_port} and {len(sites)} trainers")
    processes.start(
        "superlink",
        [
            flower_command("flower-superlink"),
            "--ssl-certfile", identity.certificate, "--ssl-keyfile", identity.key,
            "--ssl-ca-certfile", identity.ca, "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            "--host", "127.0.0.1", "--port", str(control_port),
            "--fleet-api-address", f"127.0.0.1:{fleet_port}",
        ],
    )  # fmt: skip
    for name, (settings, socket) in sites.items():
        processes.start(
            f"{name}-trainer",
            [sys.executable, "-m", "client.cli", "trainer", settings, "--socket", socket],
        )
    processes.wait_until(
        lambda: accepts_connections(control_port) and accepts_connections(fleet_port),
        "the server did not start",
        _START_S,
    )
    node_ids = _enrol_keys(processes, {name: key.public for name, key in keys.items()})
    for (name, (_, socket)), port in zip(sites.items(), gateway_ports, strict=True):
        processes.start(
            f"{name}-gateway",
            [
                flower_command("flower-supernode"),
                "--root-certificates", identity.ca, "--superlink", f"localhost:{fleet_port}",
                "--auth-supernode-private-key", keys[name].private,
                "--node-config", f'site="{name}" trainer="{socket}"',
                "--host", "127.0.0.1", "--port", str(port),
            ],
        )  # fmt: skip
    processes.wait_until(
        lambda: all(socket.exists() for _, socket in sites.values()),
        "not every trainer opened its socket",
        _TRAINER_START_S,
    )
    return node_ids


def _enrol_keys(processes: Processes, public_keys: Mapping[str, Path]) -> dict[str, int]:
    """Tell the SuperLink these keys; returns the Flower node that each now stands for."""
    flwr = flower_command("flwr")
    commands: list[list[str | Path]] = [
        [flwr, "supernode", "register", key, CONNECTION, "--name", site, "--format", "json"]
        for site, key in public_keys.items()
    ]
    answers = processes.run_all(commands, _START_S)  # side by side: each spends seconds on its imports
    return {site: _node_id(site, answer) for site, answer in zip(public_keys, answers, strict=True)}


def _node_id(site: str, answer: str) -> int:
    try:
        return int(json.loads(answer[answer.index("{") :])["node-id"])
    except (ValueError, KeyError) as error:
        raise LaunchError(f"Flower did not enrol the key of {site}: {answer.strip()[:300]}") from error


def _flwr(processes: Processes, *arguments: str) -> str:
    """Run one `flwr` command to its end; returns what it printed. Raises LaunchError."""
    return processes.run([flower_command("flwr"), *arguments], deadline_s=_START_S)


def _follow(study: StudyConfig, run_dir: Path, processes: Processes, shown: int) -> Outcome:
    """Show the server's log as it grows until the study ended. Raises LaunchError if it cannot end.

    `shown` bytes of it are of an earlier start and not shown again.
    """
    known: set[str] = set()

    def show() -> None:
        nonlocal shown
        path = run_dir / "server.log"
        if path.exists():
            with path.open("rb") as file:
                file.seek(shown)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            shown += len(whole)
            sys.stdout.write(whole.decode(errors="replace"))
            sys.stdout.flush()

    def ended() -> bool:
        show()
        now = status.read_status(run_dir)
        return now is not None and now.or_died().is_over

    def go_on_without() -> None:
        """A site that is gone costs the study its site, as long as there are enough."""
        for name in sorted(processes.ended().keys() - known):
            lost = {process.rpartition("-")[0] for process in processes.ended()}
            if name == "superlink" or len(set(study.sites.train) - lost) < study.sites.quorum:
                processes.require_alive()
            known.add(name)
            log.warn(f"{name} has ended; the study goes on without it. {processes.tail(name)}")

    processes.wait_until(lambda: status.read_status(run_dir) is not None, "the study did not begin", _START_S)
    processes.wait_until(ended, "the study did not end", float("inf"), go_on_without)
    show()
    last = status.read_status(run_dir)
    if last is None:
        raise LaunchError(f"{run_dir} was removed while the study ran; run it again")
    final = last.or_died()
    return Outcome(final.status == "finished", final.reason)


def _write_server_settings(
    study: StudyConfig, run_dir: Path, node_ids: Mapping[str, int], *, synthetic: bool
) -> Path:
    """server.yaml and the study as run; returns the first."""
    study_file, settings = run_dir / "study.yaml", run_dir / "server.yaml"
    write_atomically(study_file, to_yaml(study.model_dump(mode="json")))
    values = {
        "study": str(study_file.resolve()),
        "run_dir": str(run_dir.resolve()),
        "node_ids": dict(node_ids),
        "synthetic": synthetic,
        "log": log.form(),
    }
    write_atomically(settings, to_yaml(values))
    return settings


def _write_connection(flwr_home: Path, control_port: int, ca: Path) -> None:
    flwr_home.mkdir(parents=True, exist_ok=True)
    (flwr_home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{control_port}"\nroot-certificates = "{ca.resolve()}"\n',
        encoding="utf-8",
    )


@contextmanager
def _claimed_port(wish: int | None) -> Iterator[int]:
    """The port asked for, or the default, or a free one. Raises LaunchError."""
    port = wish or FLEET_PORT
    claim = None if port_is_taken(port) else claim_port(port)
    if claim is not None:
        with claim:
            yield port
        return
    if wish is not None:
        raise LaunchError(f"port {wish} is taken by another process; stop it or give another with --port")
    (other,) = free_ports(1)
    log.warn(f"port {port} is taken by another process; the server listens on {other} instead")
    yield other


def _set_aside(run_dir: Path) -> None:
    """Move an earlier run of this name away; a new run never writes over an old one."""
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    run_dir.rename(aside)
    log.event(f"an earlier run was there; it is now {aside}")


@contextmanager
def _sockets(names: Collection[str]) -> Iterator[dict[str, Path]]:
    """Sockets by site, in a folder that only this user can enter, short enough for Unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="consilium-"))
    try:
        yield {name: folder / f"{number}.sock" for number, name in enumerate(names)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _started(work: Path, sockets: Mapping[str, Path]) -> Iterator[Processes]:
    scratch = tuple({socket.parent for socket in sockets.values()})
    processes = Processes(work / "logs", _environment(work, os.environ), scratch)
    try:
        yield processes
    finally:
        processes.stop()


def _environment(work: Path, ours: Mapping[str, str]) -> dict[str, str]:
    """What every process of the federation sees of this machine."""
    path = os.pathsep.join([str(Path(sys.executable).parent), ours.get("PATH", "")])
    return {
        **ours,
        "PATH": path,  # Flower starts its children by name
        "FLWR_HOME": str((work / "flower").resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
