"""The processes of a federation on this machine, and how each comes back.

A trainer or a gateway that dies is simply started again: the trainer answers a plan by its id,
and a gateway that forgot one gets it again. The SuperLink takes the ServerApp with it, so after
its return the study is run anew, which goes on from the last checkpoint. Enrolled keys are in
the SuperLink's database; if that is gone they are enrolled again.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common import log
from common.config import StudyConfig
from common.errors import LaunchError
from common.processes import Command, Processes, accepts_connections, flower_command, free_ports
from common.supervision import MOST, Ended, Supervision, sites_of
from server import bundle, provision

CONNECTION = "consilium"
SUPERLINK = "superlink"

_START_S = 90.0
_TRAINER_START_S = 180.0  # importing torch on a busy, cold disk

WriteSettings = Callable[[Mapping[str, int]], Path]
"""Writes server.yaml for these Flower nodes by site; returns it."""


@dataclass
class LocalFederation:
    """A server and its sites, each under supervision."""

    study: StudyConfig
    sites: Mapping[str, tuple[Path, Path]]
    """Settings and socket by name, of those that are started."""
    work: Path
    processes: Processes
    fleet_port: int
    write_settings: WriteSettings
    _supervision: Supervision = field(default_factory=Supervision)
    _public_keys: dict[str, Path] = field(default_factory=dict)
    _control_port: int = 0
    _settings: Path = Path()
    _unknown: bool = False
    """True while the SuperLink does not know the sites' keys, because its database was gone."""
    _app: Path = Path()

    # --- the first start -----------------------------------------------------------------

    def start(self) -> None:
        """Start the server and the sites, and run the study. Raises LaunchError."""
        identity = provision.make_server_identity(self.work / "keys", ["localhost", "127.0.0.1"])
        keys = {name: provision.make_site_key(self.work / "keys", name) for name in self.study.sites.all}
        self._public_keys = {name: key.public for name, key in keys.items()}
        self._control_port, *gateway_ports = free_ports(1 + len(self.sites))
        _write_connection(Path(self.processes.env["FLWR_HOME"]), self._control_port, identity.ca)

        log.event(f"starting the server on port {self.fleet_port} and {len(self.sites)} trainers")
        self.processes.start(
            SUPERLINK,
            [
                flower_command("flower-superlink"),
                "--ssl-certfile", identity.certificate, "--ssl-keyfile", identity.key,
                "--ssl-ca-certfile", identity.ca, "--enable-supernode-auth",
                "--disable-runtime-dependency-installation", "--database", self._database,
                "--host", "127.0.0.1", "--port", str(self._control_port),
                "--fleet-api-address", f"127.0.0.1:{self.fleet_port}",
            ],
        )  # fmt: skip
        for name, (settings, socket) in self.sites.items():
            self.processes.start(f"{name}-trainer", self.trainer_command(name, settings, socket))
        self._wait_for_superlink()
        self._enrol()
        self._app = bundle.stage(self.work / "app")
        for (name, (_, socket)), port in zip(self.sites.items(), gateway_ports, strict=True):
            command = self.gateway_command(name, socket, identity.ca, keys[name].private, port)
            self.processes.start(f"{name}-gateway", command)
        self.processes.wait_until(
            lambda: all(socket.exists() for _, socket in self.sites.values()),
            "not every trainer opened its socket",
            _TRAINER_START_S,
        )
        self.run_study()

    def run_study(self) -> None:
        """Start the ServerApp; it goes on from the last checkpoint, if there is one. Raises LaunchError."""
        self.processes.run(
            [
                flower_command("flwr"), "run", str(self._app), CONNECTION,
                "--run-config", f'server="{self._settings.resolve()}"',
            ],
            deadline_s=_START_S,
        )  # fmt: skip

    def trainer_command(self, name: str, settings: Path, socket: Path) -> Command:  # noqa: ARG002
        """How the trainer of site `name` is started."""
        return [sys.executable, "-m", "client.cli", "trainer", settings, "--socket", socket]

    def gateway_command(self, name: str, socket: Path, ca: Path, key: Path, port: int) -> Command:
        """How the gateway of site `name` is started; `port` is for its own child process."""
        return [
            flower_command("flower-supernode"),
            "--root-certificates", ca, "--superlink", f"localhost:{self.fleet_port}",
            "--auth-supernode-private-key", key,
            "--node-config", f'site="{name}" trainer="{socket}"',
            "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip

    @property
    def _database(self) -> Path:
        return self.work / "superlink.db"

    def _wait_for_superlink(self) -> None:
        self.processes.wait_until(
            lambda: accepts_connections(self._control_port) and accepts_connections(self.fleet_port),
            "the server did not start",
            _START_S,
            self._require_superlink,
        )

    def _require_superlink(self) -> None:
        if SUPERLINK in self.processes.ended():
            raise LaunchError(f"the SuperLink did not start. {self.processes.tail(SUPERLINK)}")

    def _enrol(self) -> None:
        """Tell the SuperLink the sites' keys, and the server which Flower node each now stands for."""
        flwr = flower_command("flwr")
        commands: list[list[str | Path]] = [
            [flwr, "supernode", "register", key, CONNECTION, "--name", site, "--format", "json"]
            for site, key in self._public_keys.items()
        ]
        answers = self.processes.run_all(
            commands, _START_S
        )  # side by side: each spends seconds on its imports
        nodes = {
            site: _node_id(site, answer) for site, answer in zip(self._public_keys, answers, strict=True)
        }
        self._settings = self.write_settings(nodes)

    # --- coming back ---------------------------------------------------------------------

    def look(self) -> bool:
        """Start what has ended again, when it is time. True if the study has to be run anew.

        Raises LaunchError if what was given up cannot be done without.
        """
        now = time.monotonic()
        for ended in self._supervision.see(self.processes.ended(), now):
            self._say(ended)
            if ended.name == SUPERLINK:
                self.processes.end_family(SUPERLINK)  # a ServerApp without its SuperLink waits for nothing
            if ended.is_final:
                self._require_quorum(ended.name)
        run_anew = False
        for name in self._supervision.due(now):
            if name not in self.processes.ended():
                continue  # a gateway that was started with its new enrolment
            if name == SUPERLINK:
                run_anew = self._bring_superlink_back()
            else:
                self.processes.restart(name)
        return run_anew

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
                self._enrol_anew()
        except LaunchError:
            if self.has_superlink:
                raise
            return False
        return True

    @property
    def has_superlink(self) -> bool:
        """True while the SuperLink runs."""
        return SUPERLINK not in self.processes.ended()

    def _enrol_anew(self) -> None:
        log.warn("the SuperLink's database is gone; the sites' keys are enrolled again")
        self._enrol()
        self._unknown = False
        gateways = {f"{name}-gateway" for name in self.sites} - self._supervision.given_up
        for gateway in sorted(gateways):  # each believes to be a node that is known no more
            self.processes.end(gateway)
            self.processes.restart(gateway)

    def _say(self, ended: Ended) -> None:
        what = (
            f"given up after {MOST} restarts; {self.processes.tail(ended.name)}"
            if ended.is_final
            else f"starting it again in {ended.pause_s:g} s (restart {ended.number} of at most {MOST})"
        )
        log.warn(f"{ended.name} {ended.how}; {what}", process=ended.name)

    def _require_quorum(self, lost: str) -> None:
        left = set(self.study.sites.train) - sites_of(self._supervision.given_up)
        if lost == SUPERLINK or len(left) < self.study.sites.quorum:
            raise LaunchError(
                f"{lost} ended {MOST + 1} times and is given up; the study cannot go on without. "
                f"{self.processes.tail(lost)}"
            )


def _node_id(site: str, answer: str) -> int:
    try:
        return int(json.loads(answer[answer.index("{") :])["node-id"])
    except (ValueError, KeyError) as error:
        told = " ".join(answer.split())  # Flower prints a page
        raise LaunchError(f"Flower did not enrol the key of {site}: {told[:300]}") from error


def _write_connection(flwr_home: Path, control_port: int, ca: Path) -> None:
    flwr_home.mkdir(parents=True, exist_ok=True)
    (flwr_home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{control_port}"\nroot-certificates = "{ca.resolve()}"\n',
        encoding="utf-8",
    )
