"""`consilium-server`, but some of what it starts is bad.

    python -m benchmarks.faults.launch PLAN.json simulate STUDY.yaml ...

PLAN names by site a script for a bad trainer, a gate that holds a good one, a bad clock or a bad link, and whether
the server's certificate has expired. Everything else is the product's own launcher.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.processes.launcher import Command
from common.processes.ports import free_ports
from common.settings import Frozen
from server.cli.main import main as server_main
from server.deployment import certificates
from server.simulation import launch, local_federation


class Link(Frozen):
    """A line of `mbit` per second and `delay_ms` each way."""

    mbit: float = 1000.0
    delay_ms: float = 0.0


class Plan(Frozen):
    """Who is bad."""

    trainers: dict[str, str] = {}  # noqa: RUF012  (pydantic copies it)
    """Script by site."""
    gates: dict[str, Path] = {}  # noqa: RUF012
    """Folder of a `held.Gate` by site."""
    clocks: dict[str, float] = {}  # noqa: RUF012
    """Seconds ahead by site."""
    links: dict[str, Link] = {}  # noqa: RUF012
    expired: bool = False


def main(arguments: Sequence[str]) -> int:
    plan = Plan.model_validate_json(Path(arguments[0]).read_text())

    class Faulty(local_federation.LocalFederation):
        def trainer_command(self, name: str, settings: Path, socket: Path) -> Command:
            if name in plan.trainers:
                script = plan.trainers[name]
                return [sys.executable, "-m", "benchmarks.faults.bad_trainer", settings, socket, script]
            command = list(super().trainer_command(name, settings, socket))
            if name in plan.gates:
                module = command.index("client.cli")
                command[module : module + 1] = ["benchmarks.faults.held", plan.gates[name]]
            return command

        def gateway_command(self, name: str, socket: Path, ca: Path, key: Path, server: str) -> Command:
            if name in plan.links:
                (listen,) = free_ports(1)
                line = plan.links[name]
                self.processes.start(
                    f"{name}-link",
                    [
                        sys.executable, "-m", "benchmarks.faults.bad_link",
                        str(listen), str(self.fleet_port), str(line.mbit), str(line.delay_ms),
                    ],
                )  # fmt: skip
                server = f"localhost:{listen}"
            command = list(super().gateway_command(name, socket, ca, key, server))
            if name in plan.clocks:
                module = command.index("client.cli")
                command[module : module + 1] = ["benchmarks.faults.bad_clock", str(plan.clocks[name])]
            return command

    launch.LocalFederation = Faulty  # type: ignore[misc]
    if plan.expired:
        # A minute and a half, from five minutes ago: certificates begin a little early.
        certificates.make_server_identity = partial(certificates.make_server_identity, valid_days=0.001)  # type: ignore[arg-type]
    return server_main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
