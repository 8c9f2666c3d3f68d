"""Settings of a site's gateway: gateway.yaml, which comes with the start-up kit."""

from pathlib import Path
from typing import Annotated, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import AfterValidator, Field, model_validator

from common.config import Name
from common.errors import ConfigError
from common.network import hosts, proxies, unix_sockets
from common.settings import Frozen, load_settings

FILE = "gateway.yaml"


class GatewayConfig(Frozen):
    """How this site reaches the server. Relative paths count from the file's own folder."""

    site: Name
    """Name of this site, as the server enrolled it."""
    server: Annotated[
        str, AfterValidator(hosts.server_address), Field(json_schema_extra={"pattern": r"^.+:\s*\d{1,5}\s*$"})
    ]
    """Name or address and port, as in the server's certificate."""
    proxy: Annotated[str, AfterValidator(proxies.proxy_url)] | None = None
    """HTTP proxy that leads to the server by CONNECT: `http://HOST:PORT`, or `http://USER:PASSWORD@HOST:PORT`. None:
    the gateway connects directly, whatever proxy the environment names."""
    ca: Path = Path("ca.pem")
    """Certificate of the authority that signs the server's certificate."""
    key: Path = Path("site.key")
    """This site's private key, which never leaves it."""
    socket: Path = Path("state/trainer.sock")
    """Unix socket on which the trainer listens."""
    version: str = ""
    """Version of the server that made the start-up kit."""

    @model_validator(mode="after")
    def _loopback_needs_no_proxy(self) -> Self:
        host, _ = hosts.divided(self.server)
        if self.proxy is not None and host in ("127.0.0.1", "::1"):
            raise ValueError(f"proxy: {host} is this machine, and no proxy leads there; remove the line")
        return self


def load_gateway(path: Path) -> GatewayConfig:
    """Read gateway.yaml, or the one in the folder `path`. Raises ConfigError."""
    file = path / FILE if path.is_dir() else path
    config = load_settings(file, GatewayConfig, "gateway")
    home = file.resolve().parent
    places = {name: home / getattr(config, name) for name in ("ca", "key", "socket")}
    return config.model_copy(update=places)


def require_files(config: GatewayConfig) -> None:
    """Raises ConfigError for a key or a CA that is not there or of no use, and for a socket with too long a path."""
    if (why := unix_sockets.too_long(config.socket)) is not None:
        raise ConfigError(why)
    if not config.key.exists():
        raise ConfigError(f"{config.key} is not there; `consilium-site key` makes this site's key")
    if not config.ca.exists():
        raise ConfigError(f"{config.ca} is not there; it comes with the start-up kit")
    authority(config)
    if config.key.stat().st_mode & 0o077:
        raise ConfigError(f"{config.key} can be read by other users; `chmod 600` it")


def authority(config: GatewayConfig) -> bytes:
    """Certificates of the authority, in PEM and nothing else. Raises ConfigError.

    gRPC says of a file that it cannot read only that nothing connects, and that looks like a fault of the network.
    """
    copy = f"copy {config.ca.name} from the start-up kit again"
    try:
        data = config.ca.read_bytes()
        found = x509.load_pem_x509_certificates(data)
    except OSError as error:
        raise ConfigError(f"{config.ca} cannot be read ({error.strerror}); {copy}") from error
    except ValueError as error:
        raise ConfigError(f"{config.ca} is no certificate in PEM; {copy}") from error
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in found)
