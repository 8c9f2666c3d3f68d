"""Public keys of the sites that may connect, one file per site.

The operator enrols a key by adding its file and revokes it by moving the file away. The running server
follows within a second; a server that starts later reads the files first. A revoked key is never accepted
again: Flower keeps it as revoked, and the operator may have had a reason. The site makes a new one.
"""

import contextlib
import hashlib
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common import keys
from common.errors import ConfigError, LaunchError
from common.files import write_atomically
from server.deployment.folder import ServerFolder

REVOKED = "revoked"

_DATABASE_TIMEOUT_S = 10.0
"""How long to wait for the lock of the SuperLink's database."""


@dataclass(frozen=True)
class Node:
    """A site's node in the SuperLink's database."""

    node_id: int
    enrolled: datetime
    online: bool
    seen: datetime | None
    """When the site was last connected; None if it never was."""
    since: datetime | None = None
    """When it connected, while it is online."""


@dataclass(frozen=True)
class Key:
    """A site's public key."""

    site: str
    path: Path
    pem: bytes
    """The form that Flower stores."""
    fingerprint: str


@dataclass(frozen=True)
class KeyFiles:
    """The key files of all enrolled sites, readable or not."""

    keys: dict[str, Key]
    """By site."""
    unreadable: dict[str, str]
    """What is wrong with a file, by site."""


def read_key(path: Path, site: str) -> Key:
    """The public key of `site` in OpenSSH's form. Raises ConfigError."""
    key = keys.read_public(path)
    return Key(site, path, keys.flower_form(key), keys.fingerprint(key))


def read_key_files(folder: ServerFolder) -> KeyFiles:
    """Every enrolled key. A file that cannot be read does not hide the others."""
    files = KeyFiles({}, {})
    for path in sorted(folder.sites.glob("*.pub")):
        try:
            files.keys[path.stem] = read_key(path, path.stem)
        except ConfigError as error:
            files.unreadable[path.stem] = str(error)
    return files


def enrolled(folder: ServerFolder) -> dict[str, Key]:
    """The keys that may connect, by site. Raises ConfigError if any file cannot be read."""
    files = read_key_files(folder)
    if files.unreadable:
        raise ConfigError("; ".join(files.unreadable.values()))
    return files.keys


def enrol(folder: ServerFolder, site: str, public: Path) -> Key:
    """Allow the holder of the private half of `public` to connect as `site`. Raises ConfigError, StorageError."""
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
                f"{public} was revoked before and cannot come back; the site makes a new key with "
                "`consilium-site key --renew`"
            )
    text = public.read_bytes().split()
    write_atomically(folder.sites / f"{site}.pub", b" ".join(text[:2]) + b"\n")
    return key


def revoked(folder: ServerFolder) -> dict[str, str]:
    """Names of sites by the fingerprints of their revoked keys. Raises ConfigError."""
    files = sorted((folder.sites / REVOKED).glob("*.pub"))
    return {read_key(path, "").fingerprint: path.stem.rpartition("-")[0] for path in files}


def revoke(folder: ServerFolder, site: str) -> Key:
    """Revoke the key of `site`. Raises ConfigError if it has none, or its file cannot be read."""
    files = read_key_files(folder)
    known = files.keys
    if site in files.unreadable:
        raise ConfigError(files.unreadable[site])
    if site not in known:
        raise ConfigError(f"{site} has no key here; enrolled are {', '.join(known) or 'no sites'}")
    key = known[site]
    aside = folder.sites / REVOKED / f"{site}-{hashlib.sha256(key.pem).hexdigest()[:12]}.pub"
    aside.parent.mkdir(exist_ok=True)
    key.path.rename(aside)
    return key


def nodes(database: Path) -> dict[bytes, Node]:
    """Every node that the SuperLink accepts now, by its public key; empty without a database.

    Flower 1.39 keeps one row per key in the table `node`. Reading the table is fast; a call of Flower's
    Control API needs seconds of imports. Raises LaunchError if the database cannot be read.
    """
    rows = _rows(
        database,
        "SELECT public_key, node_id, registered_at, status, online_until, last_activated_at, "
        "last_deactivated_at, heartbeat_interval FROM node WHERE status != 'unregistered'",
    )
    return {row[0]: _node(*row[1:]) for row in rows}


def unfinished_runs(database: Path) -> set[int]:
    """Flower's numbers of the runs that have not ended. Raises LaunchError if the database cannot be read."""
    rows = _rows(
        database,
        "SELECT run.run_id FROM run JOIN task ON task.task_id = run.primary_task_id WHERE task.finished_at IS NULL",
    )
    return {row[0] % 2**64 for row in rows}


def failed_run(database: Path, run_id: int) -> str | None:
    """Why Flower's run of this number failed, in Flower's words; None if it did not.

    Raises LaunchError if the database cannot be read.
    """
    rows = _rows(
        database,
        "SELECT run.run_id, task.details FROM run JOIN task ON task.task_id = run.primary_task_id "
        "WHERE task.sub_status = 'failed'",
    )
    return next((str(details) for number, details in rows if number % 2**64 == run_id), None)


def _rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    """Rows of the SuperLink's database; none without one, or before Flower made its tables. Raises LaunchError."""
    if not database.exists():
        return []
    address = f"file:{quote(str(database))}?mode=ro"
    try:
        with contextlib.closing(
            sqlite3.connect(address, uri=True, timeout=_DATABASE_TIMEOUT_S)
        ) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.Error as error:
        if "no such table" in str(error):
            return []
        raise LaunchError(f"{database} cannot be read now: {error}") from error


_PATIENCE = 2  # heartbeats that may be missed: flwr.common.constant.HEARTBEAT_PATIENCE


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
    since = datetime.fromisoformat(activated_at) if online and activated_at is not None else None
    return Node(node_id % 2**64, datetime.fromisoformat(registered_at), online, seen, since)
