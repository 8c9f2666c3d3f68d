"""A whole federation as processes on this machine.

The same programs as between institutions: a SuperLink with TLS and site keys, and for each
site a SuperNode and a trainer joined by a Unix socket. Only the addresses are loopback's and
the keys are made on the way. So a demo, a simulation and an experiment exercise what
hospitals run, and a figure from here is a figure of the real thing. Whatever dies while a study
runs is started again, and the study goes on.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import log
from common.config import StudyConfig
from common.errors import LaunchError
from common.processes import Processes, claim_port, free_ports, port_is_taken
from common.settings import to_yaml
from common.weights import write_atomically
from server import checkpoint, status
from server.federation import LocalFederation
from server.lock import held

FLEET_PORT = 9092
"""Where sites connect; Flower's own default."""
MOST_CRASHES = 3
"""Of the ServerApp, without a round in between."""

_BEGIN_S, _LOOK_S = 90.0, 0.1
_FULL_BYTES = 4 * 2**20
"""Whatever failed with less than this left on the disk failed for want of room."""


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
        held(run_dir.with_name(f".{run_dir.name}.lock"), "a launcher"),
        _claimed_port(port) as fleet_port,
        _folder(run_dir, work, resume=resume),
        _sockets([name for name in study.sites.all if name not in leave_out]) as sockets,
        _started(work, sockets) as processes,
    ):
        told = _size(run_dir / "server.log")
        started = {name: (known[name].settings, socket) for name, socket in sockets.items()}
        write_settings = partial(_write_server_settings, study, run_dir, synthetic=synthetic)
        federation = LocalFederation(study, started, work, processes, fleet_port, write_settings)
        federation.start()
        return _follow(federation, run_dir, told)


def _follow(federation: LocalFederation, run_dir: Path, shown: int) -> Outcome:
    """Show the server's log as it grows until the study ended. Raises LaunchError if it cannot end.

    `shown` bytes of it are of an earlier start and not shown again.
    """
    show = _Tail(run_dir / "server.log", shown)
    begun_by, crashes = time.monotonic() + _BEGIN_S, _Crashes(run_dir)
    while True:
        show()
        anew = federation.look()
        now = status.read_status(run_dir)
        if now is not None and federation.has_superlink and not anew:
            now = now.or_died()
            if now.is_over:
                show()
                return Outcome(now.status == "finished", now.reason)
            crash = now.reason if now.status == "crashed" else None
            if now.status == "starting" and time.monotonic() > begun_by:
                logs = federation.work / "logs"
                crash = f"it did not begin within {_BEGIN_S:.0f} s; the logs in {logs} tell why"
            if crash is not None:
                _require_room(run_dir, crash)
                if crashes.is_hopeless():
                    reason = (
                        f"the server crashed {MOST_CRASHES + 1} times without a round in between: {crash}"
                    )
                    status.set_status(run_dir, "failed", reason)
                    return Outcome(False, reason)
                log.warn(f"the server crashed ({crash}); it goes on from the last checkpoint")
                anew = True
        if anew:
            status.set_status(run_dir, "starting", "the server is started again")
            _run_again(federation)
            begun_by = time.monotonic() + _BEGIN_S
        time.sleep(_LOOK_S)


def _run_again(federation: LocalFederation) -> None:
    """Run the study once more. Raises LaunchError."""
    try:
        federation.run_study()
    except LaunchError:
        if federation.has_superlink:
            raise
        # It died under the command; when it is back, the study is run anew.


def _require_room(run_dir: Path, crash: str) -> None:
    """Raises LaunchError if the server died on a full disk, where a new one would die as well."""
    if (reason := _room_reason(run_dir)) is not None:
        log.warn(f"the server crashed ({crash})")
        raise LaunchError(reason)


def _room_reason(run_dir: Path) -> str | None:
    """On a full disk each program fails in its own words, Flower's do not mention it; so ask the disk."""
    free = shutil.disk_usage(run_dir).free
    if free >= _FULL_BYTES:
        return None
    return (
        f"files of the study could not be written: No space left on the disk of {run_dir} ({free // 1024} KiB). Free "
        "some, then go on from the last checkpoint with `consilium-server resume`"
    )


@dataclass
class _Crashes:
    """Counts crashes of the server since it last finished a round."""

    run_dir: Path
    number: int = 0
    last: Path | None = None

    def is_hopeless(self) -> bool:
        """Count one crash; True if there were too many."""
        latest = checkpoint.latest(self.run_dir)
        self.number = self.number + 1 if latest == self.last else 1
        self.last = latest
        return self.number > MOST_CRASHES


@dataclass
class _Tail:
    """Copies a log to the terminal, whole lines only, as it grows."""

    path: Path
    shown: int

    def __call__(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.shown)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.shown += len(whole)
        sys.stdout.write(whole.decode(errors="replace"))
        sys.stdout.flush()


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


@contextmanager
def _folder(run_dir: Path, work: Path, *, resume: bool) -> Iterator[None]:
    """The run's folder, with this launcher's own log and, whatever happens, a status that says how it ended."""
    if resume:
        shutil.rmtree(work, ignore_errors=True)  # keys, logs and Flower's files of the run that broke off
    elif run_dir.exists() and any(run_dir.iterdir()):
        _set_aside(run_dir)
    work.mkdir(parents=True, exist_ok=True)
    with log.also_to(run_dir / "launcher.log"):
        status.set_status(run_dir, "starting", "the server and the sites are started")
        try:
            yield
        except LaunchError as error:
            reason = _room_reason(run_dir) or str(error)
            status.set_status(run_dir, "failed", reason)
            raise LaunchError(reason) from error
        except KeyboardInterrupt:
            if (now := status.read_status(run_dir)) is not None and not now.is_over:
                status.set_status(
                    run_dir, "crashed", "it was stopped; `consilium-server resume` goes on with it"
                )
            raise


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
