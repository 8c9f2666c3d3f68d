"""The YAML files of Consilium and the settings model that reads each.

The reference pages, the JSON Schemas and the tests take this one list, so that none of them can
leave a file out.
"""

from dataclasses import dataclass

from client.config import SiteConfig
from client.gateway.settings import GatewayConfig
from common.config import StudyConfig
from common.settings import Frozen
from server.config import FederationConfig, ServerConfig
from server.paper.experiment import Experiment
from server.simulation.grid import Grid


@dataclass(frozen=True)
class SettingsFile:
    """One kind of YAML file."""

    name: str
    """In file names and addresses: `study`."""
    title: str
    model: type[Frozen]
    shipped_in: str | None = None
    """Folder under configs/ whose files are of this kind."""


FILES = {
    file.name: file
    for file in (
        SettingsFile("study", "Study", StudyConfig, "study"),
        SettingsFile("site", "Site", SiteConfig, "site"),
        SettingsFile("gateway", "Gateway", GatewayConfig),
        SettingsFile("federation", "Federation", FederationConfig, "server"),
        SettingsFile("server", "Server", ServerConfig),
        SettingsFile("grid", "Grid of studies", Grid, "grid"),
        SettingsFile("experiment", "Experiment of the paper", Experiment, "paper"),
    )
}
