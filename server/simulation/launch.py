"""A whole federation as processes on this machine.

The same programs as between institutions: a SuperLink with TLS and site keys, and for each
site a gateway and a trainer joined by a Unix socket. Only the addresses are loopback's and
the keys are made on the way. So a demo, a simulation and an experiment exercise what
hospitals run, and a figure from here is a figure of the real thing. Whatever dies while a study
runs is started again, and the study goes on.
"""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import log
from common.config import StudyConfig
from common.errors import LaunchError
from common.files import make_private
from common.lock import held
from common.network import unix_sockets
from common.processes.flower import environment
from common.processes.launcher import Processes
from common.processes.ports import claim_port, free_ports, obstacle
from server.deployment.study_runner import StudyEnd, follow, run_folder, size, write_server_settings
from server.deployment.superlink import hub_folder
from server.simulation import site_data
from server.simulation.local_federation import LocalFederation

FLEET_PORT = 9092
"""Where sites connect; Flower's own default."""


@dataclass(frozen=True)
class LocalSite:
    """One hospital on this machine: its name and its site.yaml, without a socket in it."""

    name: str
    settings: Path


def run_local(
    study: StudyConfig,
    sites: list[LocalSite],
    run_dir: Path,
    *,
    port: int | None = None,
    synthetic: bool = False,
    leave_out: Collection[str] = (),
    resume: bool = False,
    images: site_data.Digests | None = None,
) -> StudyEnd:
    """Run `study` with these sites; returns when it finished or failed.

    `resume` goes on from the last checkpoint in `run_dir` instead of setting that run aside.

    Every process started here has ended on return, on an error and on Ctrl-C. `port` None
    takes Flower's default port, or a free one if that is taken. Sites in `leave_out` are
    enrolled but never start, to see what a study does without them. `images` are kept in the folder of a new run.
    Raises LaunchError.
    """
    known = require_known(study, sites, leave_out)
    work = run_dir / "federation"
    with (
        held(
            run_dir.with_name(f".{run_dir.name}.lock"), "a launcher", otherwise="give this study another name"
        ),
        _claimed_port(port) as fleet_port,
        run_folder(run_dir, resume=resume),
        _work_folder(work),
        _sockets([name for name in study.sites.all if name not in leave_out]) as sockets,
        hub_folder() as hub,
        _started(work, {hub, *(socket.parent for socket in sockets.values())}) as processes,
    ):
        if images is not None and not resume:
            site_data.keep(run_dir, images)
        log_start = size(run_dir / "server.log")
        started = {name: (known[name].settings, socket) for name, socket in sockets.items()}
        federation = LocalFederation(
            study=study,
            sites=started,
            work=work,
            processes=processes,
            fleet_port=fleet_port,
            hub=hub,
            write_settings=partial(write_server_settings, study, run_dir, synthetic=synthetic),
        )
        federation.start()
        return follow(federation, run_dir, log_start)


def require_known(
    study: StudyConfig, sites: list[LocalSite], leave_out: Collection[str]
) -> dict[str, LocalSite]:
    """The sites by name. Raises LaunchError if the study names another, or does not name one to be left out."""
    known = {site.name: site for site in sites}
    if missing := sorted(set(study.sites.all) - known.keys()):
        raise LaunchError(
            f"the study names {', '.join(missing)}, but there are settings only for {', '.join(sorted(known))}"
        )
    if strange := sorted(set(leave_out) - set(study.sites.all)):
        raise LaunchError(f"{', '.join(strange)} cannot be left out: the study does not name it")
    return known


@contextmanager
def _claimed_port(wish: int | None) -> Iterator[int]:
    """The port asked for, or the default, or a free one. Raises LaunchError."""
    port = FLEET_PORT if wish is None else wish
    why = obstacle(port)
    claim = None if why else claim_port(port)
    if claim is not None:
        with claim:
            yield port
        return
    why = why or f"port {port} is taken by another process"
    if wish is not None:
        raise LaunchError(f"{why}; stop it or give another with --port")
    while (other_claim := claim_port(other := free_ports(1)[0])) is None:
        pass  # another launcher was given the same one, and does not listen yet
    with other_claim:
        log.warn(f"{why}; the server listens on {other} instead")
        yield other


@contextmanager
def _work_folder(work: Path) -> Iterator[None]:
    """Keys, logs and Flower's files of this launch; those of a run that broke off are of no use."""
    shutil.rmtree(work, ignore_errors=True)
    make_private(work)
    yield


@contextmanager
def _sockets(names: Collection[str]) -> Iterator[dict[str, Path]]:
    """Sockets by site, in a folder that only this user can enter, short enough for Unix sockets.

    Raises LaunchError.
    """
    try:
        folder = unix_sockets.short_folder(f"{len(names)}.sock")
    except OSError as error:
        raise LaunchError(
            f"there is no place for the trainers' sockets: {error}; set TMPDIR to a short folder"
        ) from error
    try:
        yield {name: folder / f"{number}.sock" for number, name in enumerate(names)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _started(work: Path, scratch: Collection[Path]) -> Iterator[Processes]:
    processes = Processes(work / "logs", environment(work / "flower", os.environ), tuple(scratch))
    try:
        yield processes
    finally:
        processes.stop()
