"""This site's gateway: Flower's SuperNode, kept alive.

It connects out to the server, with the site's key, and passes plans on to the trainer's socket. It
sees no image, needs no torch, and may be restarted at any time: the server sends a plan again if its
gateway was restarted. An unreachable server, or one that does not know the key yet, is tried again without
end, because the fault may be fixed elsewhere. The log gives the reason in plain words.
"""

import os
import time
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from common import keys, log
from common.config import Name
from common.errors import ConfigError
from common.network import hosts, proxies, unix_sockets
from common.polling import POLL_S
from common.processes.flower import environment, supernode_command
from common.processes.launcher import Command, Processes
from common.processes.ports import free_ports
from common.processes.restarts import Supervision
from common.processes.tail import Tail
from common.settings import Frozen, load_settings

FILE = "gateway.yaml"
NODE = "gateway"

_LONGEST_PAUSE_S = 30.0
_REMEMBERED = 20_000
"""Last characters of the SuperNode's log that are kept, to explain why it ended."""


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
    home: Path | None = None
    """Folder for Flower's own files, which may be lost at any time. None: FLWR_HOME, or gateway-state
    beside this file."""
    version: str = ""
    """Version of the server that made the start-up kit."""

    @model_validator(mode="after")
    def _loopback_needs_no_proxy(self) -> Self:
        # Flower's programs speak on these addresses among themselves, and gRPC tells proxies apart by host alone.
        host, _ = hosts.divided(self.server)
        if self.proxy is not None and host in ("127.0.0.1", "::1"):
            raise ValueError(f"proxy: {host} is this machine, and no proxy leads there; remove the line")
        return self

    @property
    def flwr_home(self) -> Path:
        """Where Flower keeps its files."""
        assert self.home is not None, "load_gateway sets it"
        return self.home


def load_gateway(path: Path) -> GatewayConfig:
    """Read gateway.yaml, or the one in the folder `path`. Raises ConfigError."""
    file = path / FILE if path.is_dir() else path
    config = load_settings(file, GatewayConfig, "gateway")
    home = file.resolve().parent
    places = {name: home / getattr(config, name) for name in ("ca", "key", "socket")}
    places["home"] = home / (config.home or os.environ.get("FLWR_HOME", "gateway-state"))
    return config.model_copy(update=places)


def require_files(config: GatewayConfig) -> None:
    """Raises ConfigError if the key or the CA is not there, the key can be read by others, or a path is too long."""
    if (why := unix_sockets.too_long(config.socket)) is not None:
        raise ConfigError(why)
    if not config.key.exists():
        raise ConfigError(f"{config.key} is not there; `consilium-site key` makes this site's key")
    if not config.ca.exists():
        raise ConfigError(f"{config.ca} is not there; it comes with the start-up kit")
    if config.key.stat().st_mode & 0o077:
        raise ConfigError(f"{config.key} can be read by other users; `chmod 600` it")


def run(config: GatewayConfig, until: Path | None = None) -> None:
    """Keep the gateway alive until this process is asked to end, or the file `until` appears.

    Raises ConfigError.
    """
    require_files(config)
    config.flwr_home.mkdir(parents=True, exist_ok=True)
    env = environment(config.flwr_home, os.environ, config.proxy)
    processes = Processes(config.flwr_home / "logs", env)
    through = "" if config.proxy is None else f" through the proxy {proxies.shown(config.proxy)}"
    log.event(f"{config.site}: the gateway connects to {config.server}{through}")
    for name, place in proxies.named(os.environ).items():
        log.event(f"{name} ({place}) is not used; a proxy to the server is named as `proxy` in {FILE}")
    try:
        _keep(config, processes, until)
    finally:
        processes.stop()


# Messages of Flower's SuperNode, and what they mean for a site.
_REASONS = {
    "Failed to activate SuperNode": "the server does not take this site's key, {fingerprint}. If it is new, read "
    "it to the study operator, who enrols it; if it was revoked, make another with `consilium-site key --renew`; if "
    "another gateway of this site was running until a moment ago, the server notices within a minute",
    # Flower's word for a call that was refused, when no one here asked it to end.
    "SuperNode terminated gracefully": "the server refused its calls: either this machine's clock is not the server's, "
    "or the key was revoked. `consilium-site check-connection` says which",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate does not fit ca.pem and the name in gateway.yaml, or has "
    "expired; ask the study operator for the kit that is valid now",
}


def reason(log_text: str, fingerprint: str) -> str:
    """Meaning of the last known message in the SuperNode's log, as the end of a sentence; empty without one."""
    matches = [(log_text.rfind(mark), text) for mark, text in _REASONS.items() if mark in log_text]
    return f": {max(matches)[1].format(fingerprint=fingerprint)}" if matches else ""


def _keep(config: GatewayConfig, processes: Processes, until: Path | None) -> None:
    supervision = Supervision(most=None, longest_pause_s=_LONGEST_PAUSE_S)
    log_file = processes.logs / f"{NODE}.log"
    log_file.unlink(missing_ok=True)
    show, log_text = Tail(log_file), ""
    processes.start(NODE, command(config))
    try:
        while until is None or not until.exists():
            log_text = (log_text + show())[-_REMEMBERED:]
            now = time.monotonic()
            for ended in supervision.see(processes.ended(), now):
                log_text += show()
                why = reason(log_text, keys.fingerprint_of_private(config.key))
                log.warn(f"the gateway {ended.how}{why}; starting it again in {ended.pause_s:g} s")
                log_text = ""
            for name in supervision.due(now):
                processes.restart(name)
            time.sleep(POLL_S)
    finally:
        show()


def command(config: GatewayConfig) -> Command:
    """Command of this site's SuperNode."""
    (port,) = free_ports(1)
    return supernode_command(
        site=config.site,
        superlink=config.server,
        ca=config.ca,
        key=config.key,
        trainer=config.socket,
        port=port,
    )
