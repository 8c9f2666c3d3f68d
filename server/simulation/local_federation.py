"""A federation whose sites are processes on this machine, too, and how each comes back.

A trainer or a gateway that dies is simply started again: the trainer answers a plan by its id,
and a gateway that forgot one gets it again. The study goes on without a site that is given up, as
long as there are enough.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common import log
from common.config import StudyConfig
from common.keys import make_site_key
from common.network import proxies
from common.processes.flower import supernode_command
from common.processes.launcher import Command
from common.processes.ports import free_ports
from common.processes.restarts import sites_of
from server.deployment import certificates
from server.deployment.superlink import SUPERLINK, Federation, WriteSettings
from server.state import Approvals

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
        self.start_superlink(identity)
        for name, (settings, socket) in self.sites.items():
            # A study may name weights that a trainer fetches, and the way out may be a proxy.
            ways_out = proxies.sparing_loopback(os.environ)
            self.processes.start(f"{name}-trainer", self.trainer_command(name, settings, socket), ways_out)
        self._wait_for_superlink()
        self._enrol()
        self.stage()
        gateway_ports = free_ports(len(self.sites))
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

    def trainer_command(self, name: str, settings: Path, socket: Path) -> Command:  # noqa: ARG002
        """How the trainer of site `name` is started."""
        return [sys.executable, "-m", "client.cli", "trainer", settings, "--socket", socket]

    def gateway_command(self, name: str, socket: Path, ca: Path, key: Path, port: int) -> Command:
        """How the gateway of site `name` is started; `port` is for its own child process."""
        return supernode_command(
            site=name,
            superlink=f"localhost:{self.fleet_port}",
            ca=ca,
            key=key,
            trainer=socket,
            port=port,
        )

    def _enrol(self) -> None:
        """Tell the SuperLink the sites' keys, and the server which Flower node each now stands for."""
        self._settings = self.write_settings(self.register(self._public_keys))

    def _enrol_again(self) -> None:
        self._enrol()
        gateways = {f"{name}-gateway" for name in self.sites} - self._supervision.given_up
        for gateway in sorted(gateways):  # each believes to be a node that is known no more
            self.processes.end(gateway)
            self.processes.restart(gateway)

    def _lost(self, name: str) -> None:
        left = set(self.study.sites.train) - sites_of(self._supervision.given_up)
        if name == SUPERLINK or len(left) < self.study.sites.quorum:
            super()._lost(name)
