"""Flower's SuperLink on this machine: started, enrolled at, given studies, and brought back.

The SuperLink takes the ServerApp with it when it dies, so after its return the study is run again,
which goes on from the last checkpoint. Enrolled keys are in its database; if that is gone they
are enrolled again. Sites reach its Fleet API; the Control and Runtime APIs, which can enrol keys
and start runs, listen on loopback only.
"""

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from common import log
from common.errors import LaunchError
from common.network import unix_sockets
from common.network.hosts import joined
from common.polling import wait_until
from common.processes.launcher import Command, Processes
from common.processes.ports import accepts_connections, free_ports, obstacle, taken
from common.processes.restarts import MOST, Ended, Supervision
from common.processes.toml import quoted
from server.deployment import bundle, site_keys
from server.deployment.certificates import ServerIdentity, require_usable
from server.state import Approvals

CONNECTION = "consilium-superlink-connection"
"""Name of the connection in Flower's own settings. Flower takes a name for an app if a folder of that name with a
pyproject.toml lies in the working directory, as a checkout called `consilium` does."""
SUPERLINK = "superlink"
FLOWER = "flower"
"""Template of what speaks Flower's protocols, if a launcher has prepared one (`common/processes/template.py`)."""
_FLWR: Command = (sys.executable, "-m", "server.deployment.flower_cli")

START_S = 300.0
"""For a program of Flower to do one thing, on a very busy machine. One that dies is noticed at once."""

_ENDING_S = 20.0
"""How long the processes of a server that was killed may take to end."""
HUB_SOCKET = "hub.sock"

WriteSettings = Callable[[Mapping[str, int]], Path]
"""Writes server.yaml for these Flower nodes by site; returns it."""


@contextmanager
def hub_folder() -> Iterator[Path]:
    """A folder that only this user can enter, short enough for a Unix socket. Raises LaunchError."""
    try:
        folder = unix_sockets.short_folder(HUB_SOCKET)
    except OSError as error:
        raise LaunchError(
            f"there is no place for the server's socket: {error}; set TMPDIR to a short folder"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(kw_only=True)
class Federation:
    """A SuperLink, and whatever is started beside it, under supervision."""

    work: Path
    """Where the SuperLink keeps its database, and where the app is staged."""
    processes: Processes
    fleet_port: int
    fleet_host: str = "127.0.0.1"
    """Address of this machine on which sites may connect."""
    hub: Path | None = None
    """Folder for the socket on which the ServerApp reaches the SuperLink; None: `work`, if its path is short."""
    _supervision: Supervision = field(default_factory=Supervision)
    _control_port: int = 0
    _unknown: bool = False
    """True while the SuperLink does not know the sites' keys, because its database was gone."""
    _app: Path = Path()
    _run: int | None = None
    """Flower's number of the run that was started last."""

    # --- the first start -----------------------------------------------------------------

    def start_superlink(self, identity: ServerIdentity) -> None:
        """Start the SuperLink, without waiting for it.

        Raises LaunchError if it could not listen, or if no site could trust its certificate.
        """
        self._require_places()
        require_usable(identity)
        (self._control_port,) = free_ports(1)
        _write_connection(Path(self.processes.env["FLWR_HOME"]), self._control_port, identity.ca)
        self.processes.start(
            SUPERLINK,
            [
                sys.executable, "-m", "server.deployment.flower_superlink", self.refusals, self.work / "weights",
                (self.hub or self.work) / HUB_SOCKET,
                "--ssl-certfile", identity.certificate, "--ssl-keyfile", identity.key,
                "--ssl-ca-certfile", identity.ca, "--enable-supernode-auth",
                "--disable-runtime-dependency-installation", "--database", _sqlite_url(self._database),
                "--host", "127.0.0.1", "--port", str(self._control_port),
                "--fleet-api-address", joined(self.fleet_host, self.fleet_port),
            ],
            template=FLOWER,
        )  # fmt: skip

    def stage(self) -> None:
        """Make the app that the ServerApp runs from, out of the code that is installed here."""
        self._app = bundle.stage(self.work / "app")

    def register(self, keys: Mapping[str, Path]) -> dict[str, int]:
        """Tell the SuperLink the public keys of sites; returns the Flower node that each now stands for.

        Raises LaunchError.
        """
        commands: list[Command] = [
            [*_FLWR, "supernode", "register", key, CONNECTION, "--name", site, "--format", "json"]
            for site, key in keys.items()
        ]
        # Side by side: each may spend seconds on its imports.
        answers = self.processes.run_all(commands, START_S, template=FLOWER)
        return {site: _node_id(site, answer) for site, answer in zip(keys, answers, strict=True)}

    def run(self, settings: Path) -> int:
        """Start the ServerApp; it goes on from the last checkpoint, if there is one. Raises LaunchError.

        Returns Flower's number of the run.
        """
        printed = self.processes.run(
            [
                *_FLWR, "run", str(self._app.resolve()), CONNECTION,
                "--run-config", f"server={quoted(settings.resolve())}", "--format", "json",
            ],
            deadline_s=START_S,
            template=FLOWER,
        )  # fmt: skip
        self._run = _run_id(printed)
        return self._run

    def why_the_run_failed(self) -> str | None:
        """What ended the ServerApp that was started last, if it said nothing itself; None while nothing did."""
        if self._run is None:
            return None
        with suppress(LaunchError):  # the database may be locked for a moment
            return site_keys.failed_run(self._database, self._run)
        return None

    @property
    def refusals(self) -> Path:
        """Whom the SuperLink turned away: one `server.deployment.access_log.Refusal` a line."""
        return self.work / "refused.jsonl"

    @property
    def _database(self) -> Path:
        return self.work / "superlink.db"

    def _require_places(self) -> None:
        """Raises LaunchError for an address or a folder with which the SuperLink would end, or never be ready."""
        if (why := self._obstacle()) is not None:
            place = joined(self.fleet_host, self.fleet_port)
            raise LaunchError(f"the server cannot listen on {place}: {why}. {self._place_is_set_by}")

    def _obstacle(self) -> str | None:
        """Why nothing can listen at the server's address. The processes of a server that was killed may still be
        ending, so a port that is taken is waited for.
        """

        def is_taken() -> bool:
            return obstacle(self.fleet_port, self.fleet_host) == taken(self.fleet_port)

        wait_until(lambda: not is_taken(), _ENDING_S)
        return obstacle(self.fleet_port, self.fleet_host)

    _place_is_set_by = "Stop what listens there, or give another port"
    """What to do if the address or the port is not available: a sentence without its full stop."""

    def _wait_for_superlink(self) -> None:
        self.processes.wait_until(
            self._is_ready, "the server did not start", START_S, self._require_superlink
        )

    def _is_ready(self) -> bool:
        """True if both ports answer and it is the SuperLink that answers: another process may listen there as well."""
        answers = accepts_connections(self._control_port) and accepts_connections(
            self.fleet_port, self.fleet_host
        )
        return answers and self.has_superlink

    def _require_superlink(self) -> None:
        if SUPERLINK in self.processes.ended():
            raise LaunchError(f"the SuperLink did not start. {self.processes.tail(SUPERLINK)}")

    # --- what differs between federations ------------------------------------------------

    def run_study(self) -> None:
        """Run the study that this federation is for. Raises LaunchError."""
        raise NotImplementedError

    def show_approvals(self, approvals: Approvals | None) -> None:
        """Say what to do about sites that wait for a person; the server's log has who and since when."""

    def _enrol_again(self) -> None:
        """Tell a SuperLink whose database was gone the sites' keys. Raises LaunchError."""
        raise NotImplementedError

    def _lost(self, name: str) -> None:
        """A process is given up. Raises LaunchError if nothing can go on without it."""
        raise LaunchError(
            f"{name} ended {MOST + 1} times and is given up; the study cannot go on without. "
            f"{self.processes.tail(name)}"
        )

    # --- coming back ---------------------------------------------------------------------

    def look(self) -> bool:
        """Start what has ended again, when it is time. True if the study has to be run again.

        Raises LaunchError if what was given up cannot be done without.
        """
        now = time.monotonic()
        for ended in self._supervision.see(self.processes.ended(), now):
            self._say(ended)
            if ended.name == SUPERLINK:
                self.processes.end_family(SUPERLINK)  # a ServerApp without its SuperLink waits for nothing
            if ended.is_final:
                self._lost(ended.name)
        run_again = False
        for name in self._supervision.due(now):
            if name not in self.processes.ended():
                continue  # a gateway that was started with its new enrolment
            if name == SUPERLINK:
                run_again = self._bring_superlink_back()
            else:
                self.processes.restart(name)
        return run_again

    def _bring_superlink_back(self) -> bool:
        """Start it and wait for it; False if it ended once more, which is for the next look."""
        self._unknown |= not self._database.exists()
        if self._unknown:  # one that ended in the middle of the enrolment left a database of half the keys
            for file in self._database.parent.glob(f"{self._database.name}*"):
                file.unlink()
        self.processes.restart(SUPERLINK)
        try:
            self._wait_for_superlink()
            if self._unknown:
                log.warn("the SuperLink's database is gone; the sites' keys are enrolled again")
                self._enrol_again()
                self._unknown = False
        except LaunchError:
            if self.has_superlink:
                raise
            return False
        return True

    @property
    def has_superlink(self) -> bool:
        """True while the SuperLink runs."""
        return SUPERLINK not in self.processes.ended()

    def _say(self, ended: Ended) -> None:
        what = (
            f"given up after {MOST} restarts; {self.processes.tail(ended.name)}"
            if ended.is_final
            else f"starting it again in {ended.pause_s:g} s (restart {ended.number} of at most {MOST})"
        )
        log.lines(f"{ended.name} {ended.how}; {what}", level=logging.WARNING, process=ended.name)


def _sqlite_url(path: Path) -> str:
    """A file as SQLAlchemy names it. Of a plain path it would take `%41` for an A, and ? for the end."""
    return f"sqlite:///{quote(str(path.resolve()))}"


def _node_id(site: str, answer: str) -> int:
    try:
        return int(json.loads(answer[answer.index("{") :])["node-id"])
    except (ValueError, KeyError) as error:
        message = " ".join(answer.split())  # Flower prints a page
        raise LaunchError(f"Flower did not enrol the key of {site}: {message[:300]}") from error


def _run_id(answer: str) -> int:
    try:
        return int(json.loads(answer[answer.index("{") :])["run-id"])
    except (ValueError, KeyError, TypeError) as error:
        message = " ".join(answer.split())
        raise LaunchError(f"Flower did not start the study: {message[:300]}") from error


def _write_connection(flwr_home: Path, control_port: int, ca: Path) -> None:
    flwr_home.mkdir(parents=True, exist_ok=True)
    (flwr_home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{control_port}"\nroot-certificates = {quoted(ca.resolve())}\n',
        encoding="utf-8",
    )
