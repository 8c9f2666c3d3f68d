"""The ServerApp: Flower's entry to a study (`conduct.py`), with the sites behind Flower.

An error of the study becomes an exception that Flower turns into a failed run.
"""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common import log
from common.settings import load_settings
from server.conduct import conduct
from server.config import ServerConfig
from server.rounds.flower_sites import FlowerSites
from server.storage.audit_heads import AuditHeads
from server.transport import hub

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry: run the study that the operator's server.yaml names."""
    config = load_settings(Path(str(context.run_config["server"])), ServerConfig, "server")
    log.start(config.log, config.run_dir / "server.log")
    conduct(config, _sites(grid, config))


def _sites(grid: Grid, config: ServerConfig) -> FlowerSites:
    """The sites behind Flower, by the short way that our SuperLink offers."""
    heads = AuditHeads(config.run_dir, config.fingerprints)
    connected = hub.connect(grid)
    if connected is None:
        return FlowerSites(grid, config.node_ids, audit_heads=heads)
    announcements, files = connected
    return FlowerSites(grid, config.node_ids, announcements, files, heads)
