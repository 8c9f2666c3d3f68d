"""A federation whose sites are processes on this machine, too, and how each comes back.

A trainer or a gateway that dies is simply started again: the trainer answers a plan by its id,
and the server offers a gateway again what it has not answered. The study goes on without a site that is given up, as
long as there are enough.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import log
from common.config import StudyConfig
from common.files import write_atomically
from common.keys import make_site_key
from common.network import proxies
from common.processes.launcher import Command
from common.processes.restarts import sites_of
from common.settings import to_yaml
from server.deployment import certificates
from server.deployment.superlink import FLOWER, SUPERLINK, Federation, WriteSettings
from server.state import Approvals

TRAINER_MODULES = ("client.cli.main", "client.config", "client.gateway.link", "client.trainer")
"""What a trainer imports before it is ready; by name, because the server's code imports nothing of a site's."""
FLOWER_MODULES = (
    "client.cli.main", "client.gateway.relay", "client.gateway.settings",
    "flwr.cli.app",
    "flwr.superlink.cli", "server.deployment.access_log", "server.deployment.local_users",
    "server.transport.flower_state", "server.transport.gateway_calls", "server.transport.hub",
    "uvicorn.protocols.http.auto",
)  # fmt: skip
"""What gateways, Flower's commands and the SuperLink import. No torch: a gateway has none here either."""
TRAINERS = "trainers"
TEMPLATES: Mapping[str, Sequence[str]] = {FLOWER: FLOWER_MODULES, TRAINERS: TRAINER_MODULES}
"""Modules of each template by its name."""
_TRAINER_START_S = 600.0  # importing torch on a busy, cold disk; minutes have been seen


@dataclass(kw_only=True)
class LocalFederation(Federation):
    """A server and its sites, each under supervision."""

    study: StudyConfig
    sites: Mapping[str, tuple[Path, Path]]
    """Settings and socket by name, of those that are started."""
    write_settings: WriteSettings
    _public_keys: dict[str, Path] = field(default_factory=dict)
    _settings: Path = Path()
    _shown: set[str] = field(default_factory=set)
    """Sites that wait for a person, and whose command was shown."""

    def start(self) -> None:
        """Start the server and the sites, and run the study. Raises LaunchError."""
        identity = certificates.make_server_identity(self.work / "keys", ["localhost", "127.0.0.1"])
        keys = {name: make_site_key(self.work / "keys", name) for name in self.study.sites.all}
        self._public_keys = {name: key.public for name, key in keys.items()}

        log.event(f"starting the server on port {self.fleet_port} and {len(self.sites)} trainers")
        # A study may name weights that a trainer fetches, and the way out may be a proxy.
        ways_out = proxies.sparing_loopback(os.environ)
        self._prepare(FLOWER, {})
        is_prepared = self._prepare(TRAINERS, ways_out)
        self.start_superlink(identity)
        if not is_prepared:
            self._start_trainers(ways_out)
        self._wait_for_superlink()
        self._enrol()
        self.stage()
        if is_prepared:
            self._start_trainers(ways_out)
        for name, (_, socket) in self.sites.items():
            server = f"localhost:{self.fleet_port}"
            command = self.gateway_command(name, socket, identity.ca, keys[name].private, server)
            self.processes.start(f"{name}-gateway", command, template=FLOWER)
        self.processes.wait_until(
            lambda: all(socket.exists() for _, socket in self.sites.values()),
            "not every trainer opened its socket",
            _TRAINER_START_S,
        )
        self.run_study()

    def _prepare(self, template: str, env: Mapping[str, str]) -> bool:
        """Import what several processes need once, for all of them. False where they cannot be forked."""
        folder = next((socket.parent for _, socket in self.sites.values()), None)
        return folder is not None and self.processes.prepare(
            template, TEMPLATES[template], folder / f"{template}.sock", env
        )

    def _start_trainers(self, ways_out: Mapping[str, str]) -> None:
        for name, (settings, socket) in self.sites.items():
            command = self.trainer_command(name, settings, socket)
            self.processes.start(f"{name}-trainer", command, ways_out, template=TRAINERS)

    def run_study(self) -> None:
        """Start the ServerApp; it goes on from the last checkpoint, if there is one. Raises LaunchError."""
        self.run(self._settings)

    def show_approvals(self, approvals: Approvals | None) -> None:
        """The command that a person would type at each site: here it is typed on this machine."""
        waiting = approvals.sites if approvals is not None else {}
        for site in sorted(waiting.keys() - self._shown):
            if waiting[site].answer == "undecided" and site in self.sites:
                self._shown.add(site)
                log.event(
                    f"{site} has `ask: true`: in another terminal, `consilium-site approve {self.sites[site][0]} "
                    f"{self.study.name}` approves the study, and with --refuse refuses it",
                    site=site,
                )

    def trainer_command(self, name: str, settings: Path, socket: Path) -> Command:
        """How the trainer of site `name` is started. The sites take turns over this machine's GPUs."""
        turn = str(list(self.sites).index(name))
        return [sys.executable, "-m", "client.cli", "trainer", settings, "--socket", socket, "--turn", turn]

    def gateway_command(self, name: str, socket: Path, ca: Path, key: Path, server: str) -> Command:
        """How the gateway of site `name` is started; it connects to `server`, HOST:PORT."""
        folder = self.work / "gateways" / name
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "site": name, "server": server,
            "ca": str(ca.resolve()), "key": str(key.resolve()), "socket": str(socket.resolve()),
        }  # fmt: skip
        write_atomically(folder / "gateway.yaml", to_yaml(settings))
        return [sys.executable, "-m", "client.cli", "gateway", folder]

    def _enrol(self) -> None:
        """Tell the SuperLink the sites' keys, and the server which Flower node each now stands for."""
        self._settings = self.write_settings(self.register(self._public_keys))

    def _enrol_again(self) -> None:
        self._enrol()  # gateways knock until their key is known again

    def _lost(self, name: str) -> None:
        left = set(self.study.sites.train) - sites_of(self._supervision.given_up)
        if name == SUPERLINK or len(left) < self.study.sites.quorum:
            super()._lost(name)
