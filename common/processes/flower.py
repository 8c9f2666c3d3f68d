"""Flower's programs on one machine: their environment, and the SuperNode's command.

The server's launcher, the local federation and a site's gateway all start Flower. They share the switches
that keep it quiet: no telemetry and no check for updates, so nothing is sent to third parties. No proxy of the
environment reaches them, because they speak on loopback; only a gateway leaves the machine, and its settings say
how.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from common.network import proxies
from common.processes.launcher import Command, flower_command
from common.processes.toml import quoted


def environment(flwr_home: Path, ours: Mapping[str, str], proxy: str | None = None) -> dict[str, str]:
    """Environment of every Flower process: `ours`, with Flower's home and switches.

    `proxy` is the URL of one that leads to the server; without it nothing goes through any.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), ours.get("PATH", "")])
    return {
        **proxies.without(ours),
        **proxies.only(proxy),
        "PATH": path,  # Flower starts its children by name
        "FLWR_HOME": str(flwr_home.resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
        "FLWR_INTERNAL_GRPC_CONTROL_API": "0",  # a second way to start runs, which nothing of ours uses
    }


def supernode_command(*, site: str, superlink: str, ca: Path, key: Path, trainer: Path, port: int) -> Command:
    """Command of the SuperNode of `site`; its own child process connects to `port` on loopback.

    `superlink` is host:port of the server, `ca` its certificate authority, `key` the site's private key, and
    `trainer` the trainer's Unix socket.
    """
    return [
        flower_command("flower-supernode"),
        "--root-certificates", ca, "--superlink", superlink,
        "--auth-supernode-private-key", key,
        "--node-config", f"site={quoted(site)} trainer={quoted(trainer)}",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
