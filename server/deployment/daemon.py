"""`consilium-server up`: a server between institutions, for as long as it is wanted.

It keeps a SuperLink alive, follows the keys that are enrolled and revoked, and runs the studies of
its queue one after the other. What it is asked comes as files in its folder (`server/deployment/folder.py`), so that
the only port which anybody reaches is the one for sites. A study that was running when everything
was killed goes on when it is started again.
"""

import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from common import keys, log
from common.config import StudyConfig
from common.errors import ConsiliumError, LaunchError, StorageError
from common.files import make_private, private_files
from common.lock import held
from common.polling import POLL_S
from common.processes.flower import environment
from common.processes.launcher import Command, Processes, flower_command
from common.settings import load_settings
from server.deployment import queue, site_keys
from server.deployment.folder import ServerFolder
from server.deployment.refusals import RefusalReader, sentence
from server.deployment.study_runner import (
    StudyEnd,
    follow,
    run_folder,
    set_aside,
    size,
    write_server_settings,
)
from server.deployment.superlink import CONNECTION, START_S, SUPERLINK, Federation, hub_folder
from server.storage import checkpoint, requests, status

_KEYS_S, _TRY_AGAIN_S = 0.5, 10.0


def up(folder: ServerFolder, *, study: StudyConfig | None = None, once: bool = False) -> StudyEnd:
    """Run this server until it is stopped; with `once`, until no study waits any more.

    `study` is asked for first, unless one of its name is to go on. Returns how the last study ended.
    Raises LaunchError, and Interrupted when it is asked to end.
    """
    warning = _private(folder.root)
    (folder.root / "logs").mkdir(exist_ok=True)
    with (
        private_files(),  # inherited by the SuperLink, whose database holds what sites send
        held(folder.lock, "consilium-server up"),
        log.also_to(folder.root / "logs" / "up.log"),
        hub_folder() as hub,
        _processes(folder, hub) as processes,
    ):
        if warning is not None:
            log.warn(warning)
        host = Host(
            work=folder.work,
            processes=processes,
            fleet_port=folder.config.server.port,
            fleet_host=folder.config.server.listen,
            hub=hub,
            folder=folder,
        )
        host.start()
        now = queue.running(folder)
        if study is not None and (now is None or now.name != study.name):
            queue.put(folder, study)
        return host.serve(once=once)


def _private(root: Path) -> str | None:
    """Keep other users of the machine out of the server's folder; a sentence if they were not, or cannot be."""
    try:
        opened = make_private(root)
    except StorageError as error:  # another user owns it: a fault to know of, and none to stop at
        return str(error)
    return (
        f"{root} could be entered by other users of this machine; now it is this user's alone"
        if opened
        else None
    )


@contextmanager
def _processes(folder: ServerFolder, hub: Path) -> Iterator[Processes]:
    processes = Processes(folder.root / "logs", environment(folder.flwr_home, os.environ), (hub,))
    try:
        yield processes
    finally:
        processes.stop()


@dataclass(kw_only=True)
class Host(Federation):
    """A SuperLink for sites elsewhere, and the study that it runs, if any."""

    folder: ServerFolder
    _study: StudyConfig | None = None
    _run_id: int | None = None
    _known_runs: set[int] = field(default_factory=set)
    """Flower's numbers of runs that this server started, now or before."""
    _looked_at_keys: float = 0.0
    _refused: RefusalReader = field(init=False)
    _place_is_set_by = (
        "server.listen and server.port in federation.yaml say so; 0.0.0.0 listens on every address"
    )

    def __post_init__(self) -> None:
        self._refused = RefusalReader(self.refusals)

    def start(self) -> None:
        """Start the SuperLink, and let the enrolled sites connect. Raises LaunchError."""
        self.folder.ready.unlink(missing_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.work / "app", ignore_errors=True)  # of the version before
        self.stage()
        port, sites = self.fleet_port, site_keys.read_key_files(self.folder).keys
        log.event(f"starting the server on port {port} for {', '.join(sites) or 'no sites yet'}")
        self.start_superlink(self.folder.identity)
        self._wait_for_superlink()
        self._known_runs |= site_keys.unfinished_runs(self.folder.database)
        self._follow_keys()
        self.folder.ready.touch()
        log.event("the server is ready; sites may connect")

    def serve(self, *, once: bool) -> StudyEnd:
        """Run what waits; without `once`, for ever. Raises LaunchError."""
        last = StudyEnd(False, "no study was asked for")
        while True:
            entry = queue.running(self.folder) or next(iter(queue.waiting(self.folder)), None)
            if entry is not None:
                last = self._conduct(entry)
                ran = last.finished or last.incomplete
                log.lines(
                    f"study {entry.name}: {f'{last.word} after ' if ran else ''}{last.reason}",
                    level=logging.INFO if last.finished else logging.WARNING,
                )
            elif once:
                return last
            else:
                self.look()
                time.sleep(POLL_S)

    # --- one study -----------------------------------------------------------------------

    def _conduct(self, entry: queue.Entry) -> StudyEnd:
        """Run one study to its end, whichever that is. Raises LaunchError if the server itself cannot go on."""
        run_dir = self.folder.runs / entry.name
        broken_off = entry.path.parent.name == "running"
        if not broken_off:
            if entry.is_new:
                set_aside(run_dir)
            entry = queue.begin(self.folder, entry)
        try:
            outcome = self._run_to_its_end(entry, run_dir)
        except ConsiliumError as error:
            if SUPERLINK in self._supervision.given_up:
                raise
            outcome = StudyEnd(False, str(error))
        finally:
            self._study, self._run_id = None, None
        queue.end(entry)
        return outcome

    def _run_to_its_end(self, entry: queue.Entry, run_dir: Path) -> StudyEnd:
        before = status.read_status(run_dir)
        if before is not None and before.is_over and (entry.is_new or before.status == "finished"):
            return StudyEnd.of(before)  # killed between its end and its removal
        with run_folder(run_dir, resume=True):  # nothing of another study is there
            file = entry.path if entry.is_new else run_dir / "study.yaml"
            self._study = load_settings(file, StudyConfig, "study")
            if checkpoint.latest(run_dir) is not None:
                log.event(f"study {entry.name} goes on from its last checkpoint")
            shown = size(run_dir / "server.log")
            self._require_sites(self._study)
            requests.take_stop(run_dir)  # one that was meant for an earlier start
            self.run_study()
            return follow(self, run_dir, shown)

    def _require_sites(self, study: StudyConfig) -> None:
        """A site whose key was revoked since the study was asked for is missed like one that is away."""
        self._follow_keys()
        missing = sorted(set(study.sites.all) - self._nodes().keys())
        if len(set(study.sites.train) - set(missing)) < study.sites.quorum:
            raise LaunchError(
                f"the study names {', '.join(missing)}, whose keys are not enrolled; `consilium-server enrol` "
                "them, or leave them out of the study"
            )
        for site in missing:
            log.warn(f"the key of {site} is not enrolled; the study goes on without it", site=site)

    def run_study(self) -> None:
        """Start the ServerApp with the sites as they are enrolled now. Raises LaunchError."""
        assert self._study is not None
        run_dir = self.folder.runs / self._study.name
        settings = write_server_settings(
            self._study,
            run_dir,
            self._nodes(),
            synthetic=self.folder.config.synthetic,
            tracking=self.folder.config.tracking,
            fingerprints={
                site: key.fingerprint for site, key in site_keys.read_key_files(self.folder).keys.items()
            },
        )
        self._run_id = self.run(settings)
        self._known_runs.add(self._run_id)

    # --- what the operator asks ----------------------------------------------------------

    def look(self) -> bool:
        """Bring back what died, and do what was asked. True if the study has to be run again."""
        run_again = super().look()
        if self.has_superlink and time.monotonic() - self._looked_at_keys > _KEYS_S:
            try:
                self._follow_keys()
                self._end_strange_runs()
                self._tell_refusals()
                site_keys.enrolled(self.folder)
            except ConsiliumError as error:  # a damaged key file must not end a study
                log.warn(f"{error}; it is tried again in {_TRY_AGAIN_S:.0f} s")
                self._looked_at_keys = time.monotonic() + _TRY_AGAIN_S
        if self._study is not None and requests.take_stop(self.folder.runs / self._study.name):
            self._stop(self.folder.runs / self._study.name)
            return False
        return run_again

    def _stop(self, run_dir: Path) -> None:
        """End the running study; what it has left stays, and it can be gone on with."""
        before = status.read_status(run_dir)
        if self._run_id is not None and self.has_superlink:
            self._end_run(self._run_id)
        if before is not None and before.or_died().status == "running" and before.pid != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(before.pid, signal.SIGKILL)
        now = status.read_status(run_dir)
        if now is not None and now.status not in ("finished", status.INCOMPLETE):
            last = checkpoint.latest(run_dir)
            where = "before round 1" if last is None else f"after round {checkpoint.number_of(last)}"
            status.set_status(run_dir, "stopped", f"stopped by the operator {where}")

    def _end_run(self, run_id: int) -> None:
        with suppress(LaunchError):  # it ended meanwhile
            command: Command = [flower_command("flwr"), "stop", str(run_id), CONNECTION]
            self.processes.run(command, START_S)

    def _end_strange_runs(self) -> None:
        """End runs that something other than this server has started. Raises LaunchError."""
        for run_id in sorted(site_keys.unfinished_runs(self.folder.database) - self._known_runs):
            self._end_run(run_id)
            self._known_runs.add(run_id)  # said once
            log.warn(
                f"run {run_id} of Flower was not started by this server and is ended; look for what ran as this "
                "user, and take the server's keys as known to it",
                run=str(run_id),
            )

    def _tell_refusals(self) -> None:
        if refusals := self._refused.new():
            keys_of = site_keys.read_key_files(self.folder).keys.values()
            sites = {key.fingerprint: key.site for key in keys_of}
            gone = site_keys.revoked(self.folder)
            for refusal in refusals:
                tell = log.event if refusal.check else log.warn
                tell(sentence(refusal, sites, gone), address=refusal.address, key=refusal.fingerprint)

    def _nodes(self) -> dict[str, int]:
        """Flower's nodes by site, of those that are enrolled."""
        known = site_keys.nodes(self.folder.database)
        wanted = site_keys.read_key_files(self.folder).keys
        return {site: known[key.pem].node_id for site, key in wanted.items() if key.pem in known}

    def _follow_keys(self) -> None:
        """Register the enrolled keys at the SuperLink and remove all others. Raises LaunchError.

        An unreadable file may hold any key. While there is one, only keys that were revoked are removed,
        because Flower never accepts a removed key again.
        """
        self._looked_at_keys = time.monotonic()
        files = site_keys.read_key_files(self.folder)
        known = site_keys.nodes(self.folder.database)
        new = {site: key for site, key in files.keys.items() if key.pem not in known}
        if new:
            self.register({site: key.path for site, key in new.items()})
            for site, key in new.items():
                log.event(f"{site} may connect, with the key {key.fingerprint}", site=site)
        removed = known.keys() - {key.pem for key in files.keys.values()}
        if files.unreadable and removed:
            revoked = site_keys.revoked(self.folder)
            removed = {pem for pem in removed if keys.fingerprint(keys.from_flower(pem)) in revoked}
        for pem in removed:
            node_id = known[pem].node_id
            flwr = flower_command("flwr")
            self.processes.run([flwr, "supernode", "unregister", str(node_id), CONNECTION], START_S)
            log.warn(f"a key was revoked, {keys.fingerprint(keys.from_flower(pem))}; its site is cut off")

    def _enrol_again(self) -> None:
        self._follow_keys()
