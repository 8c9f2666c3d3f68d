"""`consilium-server provision`: from a federation's YAML to a server's folder and the sites' start-up kits.

Run again, it changes only what the YAML changed. The CA's key is kept, so that a certificate is renewed,
or a host added, without a new kit for every hospital (docs/decisions/0008).
"""

import ipaddress
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from common.settings import load_settings
from server import provision as certificates
from server.config import FederationConfig

ALWAYS = ("localhost", "127.0.0.1")
"""In every certificate: the server's own commands reach it there."""
_RENEW = timedelta(days=90)
"""A certificate that ends sooner is made anew."""


def provision(federation: Path, out: Path) -> Iterator[str]:
    """Bring the server's folder `out` up to date; yields what was done. Raises ConfigError."""
    config = load_settings(federation, FederationConfig, "federation")
    (out / "sites").mkdir(parents=True, exist_ok=True)
    if federation.resolve() != (out / "federation.yaml").resolve():
        shutil.copyfile(federation, out / "federation.yaml")
    yield from _certify(config, out / "keys")


def _certify(config: FederationConfig, keys: Path) -> Iterator[str]:
    """The CA and the server's certificate, made where they are not there or not right any more."""
    hosts = [*config.server.hosts, *(host for host in ALWAYS if host not in config.server.hosts)]
    if not (keys / "ca.pem").exists():
        certificates.keep_authority(certificates.make_authority(), keys)
        yield f"made a CA; {keys / 'ca.key'} vouches for servers: keep it secret, and in the backup"
    why = _why_anew(keys / "server.pem", hosts)
    if why is not None:
        certificates.issue(certificates.load_authority(keys), keys, hosts)
        yield f"made the server's certificate for {', '.join(hosts)}: {why}"
    for name in ("ca", "server"):
        end = _read(keys / f"{name}.pem").not_valid_after_utc
        yield f"{name}.pem is valid until {end:%Y-%m-%d}, {(end - datetime.now(UTC)).days} days from now"


def _why_anew(path: Path, hosts: list[str]) -> str | None:
    if not path.exists():
        return "there was none"
    certificate = _read(path)
    if {_plain(host) for host in certificates.hosts_of(certificate)} != {_plain(host) for host in hosts}:
        return "the hosts have changed"
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    return f"the old one ends in {left.days} days" if left < _RENEW else None


def _read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _plain(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower()
