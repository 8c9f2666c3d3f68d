"""The folder of a server between institutions, and how its commands talk to it.

`up` holds the folder's lock and does what the files in it say; every other command only reads and
writes files, each whole or not at all. So no port is opened for the operator, a command works
whether the server runs or not, and what was asked for outlives a power cut.

    federation.yaml     who takes part, and where the server is found
    keys/               the CA, the server's certificate and key
    sites/NAME.pub      keys that are enrolled; revoked/ keeps those that are no more
    queue/, running/    studies that wait, and the one that runs
    runs/STUDY/         what a study leaves
    wishes/             what the operator asks of a running study
    orders.jsonl        what the operator has ordered, here and on the console; console.token opens the latter
    flower/, logs/      the SuperLink's database, app and weights on their way, and what every process says
"""

from dataclasses import dataclass
from pathlib import Path

from common import lock
from common.errors import ConfigError
from common.settings import load_settings
from server.config import FederationConfig
from server.deployment.certificates import ServerIdentity, identity_in
from server.transport import gateway_record


@dataclass(frozen=True)
class ServerFolder:
    """Where everything of one server lies."""

    root: Path
    config: FederationConfig

    @property
    def identity(self) -> ServerIdentity:
        """The files of the server's TLS identity."""
        return identity_in(self.keys)

    @property
    def keys(self) -> Path:
        """Certificates and private keys."""
        return self.root / "keys"

    @property
    def sites(self) -> Path:
        """Public keys of the sites."""
        return self.root / "sites"

    @property
    def runs(self) -> Path:
        """One folder a study."""
        return self.root / "runs"

    @property
    def work(self) -> Path:
        """What belongs to Flower."""
        return self.root / "flower"

    @property
    def flwr_home(self) -> Path:
        """FLWR_HOME of every process of this server."""
        return self.work / "home"

    @property
    def database(self) -> Path:
        """The SuperLink's."""
        return self.work / "superlink.db"

    @property
    def gateways(self) -> Path:
        """What gateways say of themselves: `server.transport.gateway_record.GatewayFile`."""
        return self.work / gateway_record.FILE

    @property
    def refusals(self) -> Path:
        """Refused connections: one `server.deployment.refusals.Refusal` a line."""
        return self.work / "refused.jsonl"

    @property
    def ready(self) -> Path:
        """A file that is there once sites may connect, for the program that supervises this server."""
        return self.root / "ready"

    @property
    def lock(self) -> Path:
        """Held by `up`."""
        return self.root / "up.lock"

    @property
    def is_up(self) -> bool:
        """True while an `up` runs on this folder."""
        return lock.is_held(self.lock)


def open_folder(root: Path) -> ServerFolder:
    """The server's folder at `root`. Raises ConfigError."""
    if not (root / "federation.yaml").exists():
        raise ConfigError(
            f"{root} is not a server's folder: it has no federation.yaml; make one with "
            f"`consilium-server provision FEDERATION.yaml --out {root}`"
        )
    folder = ServerFolder(root, load_settings(root / "federation.yaml", FederationConfig, "federation"))
    if missing := [path.name for path in vars(folder.identity).values() if not path.exists()]:
        raise ConfigError(
            f"{folder.keys} lacks {', '.join(missing)}; run `consilium-server provision` again, or take them "
            "from a backup: with a new CA every site needs a new kit"
        )
    return folder
