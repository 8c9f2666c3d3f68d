"""Environment of Flower's programs on one machine.

Every launcher that starts Flower uses the same switches. They keep it quiet: no telemetry and no check for updates, so
nothing is sent to third parties. No proxy of the environment reaches Flower's programs, because they speak on loopback.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from common.network import proxies


def environment(flwr_home: Path, ours: Mapping[str, str]) -> dict[str, str]:
    """Environment of every Flower process: `ours`, with Flower's home and switches, and without proxies."""
    path = os.pathsep.join([str(Path(sys.executable).parent), ours.get("PATH", "")])
    return {
        **proxies.without(ours),
        "PATH": path,  # Flower starts its children by name
        "FLWR_HOME": str(flwr_home.resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
        "FLWR_INTERNAL_GRPC_CONTROL_API": "0",  # a second way to start runs, which nothing of ours uses
    }
