"""Which sites may connect: one public key per site, told to the server by its operator.

A key is enrolled by a file and revoked by moving that file away; the running server follows within
a second, and one that starts later knows at once. A key that was revoked never comes back: Flower
keeps it as revoked, and whoever took it away may have had a reason. The site makes a new one.
"""

import contextlib
import hashlib
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from common import keys
from common.errors import ConfigError, LaunchError
from common.files import write_atomically
from server.deployment.folder import ServerFolder

REVOKED = "revoked"

_PATIENT_S = 10.0
"""For the SuperLink to let its database be read."""


@dataclass(frozen=True)
class Node:
    """A key as the SuperLink's database has it."""

    node_id: int
    enrolled: datetime
    online: bool
    seen: datetime | None
    """When the site last showed that it is there; None if it never did."""


@dataclass(frozen=True)
class Key:
    """A site's public key."""

    site: str
    path: Path
    pem: bytes
    """As Flower keeps it."""
    fingerprint: str


def read_key(path: Path, site: str) -> Key:
    """The public key of `site` in OpenSSH's form. Raises ConfigError."""
    key = keys.read_public(path)
    return Key(site, path, keys.flower_form(key), keys.fingerprint(key))


def enrolled(folder: ServerFolder) -> dict[str, Key]:
    """The keys that may connect, by site."""
    return {path.stem: read_key(path, path.stem) for path in sorted(folder.sites.glob("*.pub"))}


def enrol(folder: ServerFolder, site: str, public: Path) -> Key:
    """Let whoever holds the private half of `public` connect as `site`. Raises ConfigError, StorageError."""
    if site not in folder.config.sites:
        raise ConfigError(
            f"{folder.root / 'federation.yaml'} names no site {site}, only {', '.join(folder.config.sites)}; "
            "add it there and run `consilium-server provision` again"
        )
    key, known = read_key(public, site), enrolled(folder)
    for other in known.values():
        if other.pem == key.pem and other.site != site:
            raise ConfigError(f"{public} is already the key of {other.site}; each site makes its own")
    if site in known and known[site].pem != key.pem:
        raise ConfigError(
            f"{site} has another key, {known[site].fingerprint}; revoke that first: `consilium-server revoke "
            f"{folder.root} {site}`"
        )
    for path in folder.sites.joinpath(REVOKED).glob("*.pub"):
        if read_key(path, site).pem == key.pem:
            raise ConfigError(
                f"{public} was revoked before and cannot come back; the site makes a new key with `consilium-site key`"
            )
    text = public.read_bytes().split()
    write_atomically(folder.sites / f"{site}.pub", b" ".join(text[:2]) + b"\n")
    return key


def revoked(folder: ServerFolder) -> dict[str, str]:
    """Sites by the fingerprints of their keys that are not taken any more."""
    files = sorted((folder.sites / REVOKED).glob("*.pub"))
    return {read_key(path, "").fingerprint: path.stem.rpartition("-")[0] for path in files}


def revoke(folder: ServerFolder, site: str) -> Key:
    """Let `site` connect no more. Raises ConfigError if it has no key."""
    known = enrolled(folder)
    if site not in known:
        raise ConfigError(f"{site} has no key here; enrolled are {', '.join(known) or 'no sites'}")
    key = known[site]
    aside = folder.sites / REVOKED / f"{site}-{hashlib.sha256(key.pem).hexdigest()[:12]}.pub"
    aside.parent.mkdir(exist_ok=True)
    key.path.rename(aside)
    return key


def nodes(database: Path) -> dict[bytes, Node]:
    """Every key that the SuperLink takes now, from its database; empty without one.

    Flower 1.39 keeps one row a key in the table `node`. Reading it costs nothing, where asking
    Flower's Control API costs seconds of imports. Raises LaunchError.
    """
    if not database.exists():
        return {}
    address = f"file:{quote(str(database))}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_PATIENT_S)) as connection:
        try:
            rows = connection.execute(
                "SELECT public_key, node_id, registered_at, status, online_until, last_activated_at, "
                "last_deactivated_at, heartbeat_interval FROM node WHERE status != 'unregistered'"
            ).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # before Flower made it
                return {}
            raise LaunchError(f"{database} cannot be read now: {error}") from error
    return {row[0]: _node(*row[1:]) for row in rows}


_PATIENCE = 2  # Flower waits for so many heartbeats: flwr.common.constant.HEARTBEAT_PATIENCE


def _node(
    node_id: int,
    registered_at: str,
    status: str,
    online_until: float | None,
    activated_at: str | None,
    deactivated_at: str | None,
    interval_s: float,
) -> Node:
    now = datetime.now(UTC)
    until = None if online_until is None else datetime.fromtimestamp(online_until, UTC)
    online = status == "online" and until is not None and until > now
    seen = None
    if online and until is not None:
        seen = min(now, datetime.fromtimestamp(until.timestamp() - _PATIENCE * interval_s, UTC))
    elif activated_at is not None:
        seen = max(datetime.fromisoformat(at) for at in (activated_at, deactivated_at) if at is not None)
    return Node(node_id % 2**64, datetime.fromisoformat(registered_at), online, seen)
