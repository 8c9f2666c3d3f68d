"""`consilium-server provision`: from a federation's YAML to a server's folder and the sites' start-up kits.

Run again, it changes only what the YAML changed. The CA's key is kept, so that a certificate is renewed,
or a host added, without a new kit for every hospital (docs/decisions/0009).
"""

import hashlib
import io
import ipaddress
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from cryptography import x509

from common import release
from common.files import make_private, write_atomically
from common.network.hosts import is_loopback, joined
from common.settings import load_settings
from server.config import FederationConfig
from server.deployment import certificates, site_keys
from server.deployment.folder import ServerFolder
from server.provisioning import images

ALWAYS = ("localhost", "127.0.0.1")
"""In every certificate: the server's own commands reach it there."""
_RENEW = timedelta(days=90)
"""A certificate that ends sooner is replaced."""
_NEW_CA = timedelta(days=365)
"""A CA that ends sooner has to be spoken of: a new one means work at every site."""


def provision(
    federation: Path, out: Path, *, with_images: bool = False, wheel: Path | None = None
) -> Iterator[str]:
    """Bring the server's folder `out` up to date; yields what was done. Raises ConfigError.

    `with_images` saves the container images for the sites, `wheel` goes into every kit; both stay there for
    later calls. Raises LaunchError and StorageError for them.
    """
    config = load_settings(federation, FederationConfig, "federation")
    if out.exists() and make_private(out):
        yield f"{out} could be entered by other users of this machine; now it is yours alone (mode 0700)"
    make_private(out)
    (out / "sites").mkdir(parents=True, exist_ok=True)
    make_private(out / "keys")
    if federation.resolve() != (out / "federation.yaml").resolve():
        shutil.copyfile(federation, out / "federation.yaml")
    yield from _certify(config, out / "keys")
    if with_images:
        yield from images.save(out / "kits")
    if wheel is not None:
        yield from images.add_wheel(wheel, out / "kits")
    yield from _write_kits(config, out)
    if is_loopback(host := config.server.hosts[0]):
        yield f"sites connect to {host}, which is each site's own machine; put the server's name first in server.hosts"
    yield from _remove_others(ServerFolder(out, config))


def _certify(config: FederationConfig, keys: Path) -> Iterator[str]:
    """The CA and the server's certificate, made where they are not there or not right any more."""
    hosts = [*config.server.hosts, *(host for host in ALWAYS if host not in config.server.hosts)]
    if not (keys / "ca.pem").exists():
        certificates.keep_authority(certificates.make_authority(), keys)
        yield f"made a CA; {keys / 'ca.key'} vouches for servers: keep it secret, and in the backup"
    why = _reason_to_replace(certificates.identity_in(keys), hosts)
    if why is not None:
        certificates.issue(certificates.load_authority(keys), keys, hosts)
        yield f"made the server's certificate for {', '.join(hosts)}: {why}"
    for name in ("ca", "server"):
        end = _read(keys / f"{name}.pem").not_valid_after_utc
        left = end - datetime.now(UTC)
        yield f"{name}.pem is valid until {end:%Y-%m-%d}, {left.days} days from now"
        if name == "ca" and left < _NEW_CA:
            yield f"plan for a new CA: move {keys} away and provision again; then every site needs its new kit"


# --- start-up kits ---------------------------------------------------------------------------

KIT = resources.files(str(__package__)) / "kit"
_PROGRAMS = ("site.sh",)
_WORD = re.compile(r"@([A-Z_]+)@")
_OLDEST = (1980, 1, 1, 0, 0, 0)  # of a zip: with one date, the same kit is the same bytes


def kit(
    config: FederationConfig, site: str, ca: bytes, programs: Mapping[str, bytes] = MappingProxyType({})
) -> dict[str, bytes]:
    """The files of one site's start-up kit, by name; `programs` are added to it. None of them is secret."""
    host, institution = config.server.hosts[0], config.sites[site].institution
    words = {
        "SITE": site,
        "PROJECT": re.sub("[^a-z0-9_-]", "-", site.lower()),  # of compose, which takes no other letters
        "INSTITUTION": f": {institution}" if institution else "",
        "FEDERATION": config.name,
        "SERVER": joined(host, config.server.port),
        "VERSION": release.version(),
        "CA_UNTIL": f"{x509.load_pem_x509_certificate(ca).not_valid_after_utc:%Y-%m-%d}",
    }
    files = {"ca.pem": ca, **programs}
    for template in sorted(KIT.iterdir(), key=lambda file: file.name):
        text = template.read_text(encoding="utf-8")
        files[template.name] = _WORD.sub(lambda word: words[word[1]], text).encode()
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())]
    return files | {"SHA256SUMS": "".join(sums).encode()}


def zipped(files: dict[str, bytes], folder: str) -> bytes:
    """A zip of `files` in `folder`; the same files are the same bytes, whenever it is made."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{folder}/{name}", _OLDEST)
            entry.external_attr = (0o100755 if name in _PROGRAMS else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def _write_kits(config: FederationConfig, out: Path) -> Iterator[str]:
    ca, programs = (out / "keys" / "ca.pem").read_bytes(), images.for_kit(out / "kits")
    for site in config.sites:
        path = out / "kits" / f"{site}.zip"
        data, had_one = zipped(kit(config, site, ca, programs), f"consilium-{site}"), path.exists()
        if had_one and path.read_bytes() == data:
            yield f"{path.name} is as it was"
        else:
            write_atomically(path, data)
            what = "changed: give it to the site again" if had_one else "made: give it to the site"
            yield f"{path} {what}"
        yield f"  read out over the phone, the site compares `sha256sum {path.name}`: {_spoken(data)}"


def _spoken(data: bytes) -> str:
    """SHA-256 in groups of four digits."""
    digits = hashlib.sha256(data).hexdigest()
    return " ".join(digits[place : place + 4] for place in range(0, len(digits), 4))


def _remove_others(folder: ServerFolder) -> Iterator[str]:
    """What belongs to sites that federation.yaml does not name any more."""
    for path in sorted((folder.root / "kits").glob("*.zip")):
        if path.stem not in folder.config.sites:
            path.unlink()
            yield f"{path.stem} is no longer in the federation; its kit is removed"
    files = site_keys.read_key_files(folder)
    for site in sorted(files.keys.keys() - folder.config.sites.keys()):
        site_keys.revoke(folder, site)
        yield f"{site} is no longer in the federation; its key is revoked"
    for site, problem in sorted(files.unreadable.items()):
        yield f"{site}: {problem}; the file is left as it is"


def _reason_to_replace(old: certificates.ServerIdentity, hosts: list[str]) -> str | None:
    if not old.certificate.exists():
        return "there was none"
    if (found := certificates.why_unusable(old)) is not None:
        return found
    certificate = _read(old.certificate)
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
