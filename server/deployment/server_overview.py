"""State of a server now: its sites, the study that runs or ran last, the queue.

Everything is read from the server's folder, so this works while the server runs and while it does not.
"""

from dataclasses import dataclass
from datetime import datetime

from common.settings import Frozen
from server.deployment import overview, queue, site_keys
from server.deployment.folder import ServerFolder


class ServerNow(Frozen):
    """One server, now."""

    federation: str
    up: bool
    enrolled: tuple[str, ...]
    online: tuple[str, ...]
    waiting: tuple[str, ...]
    """Studies, the next one first."""
    study: overview.Overview | None
    """That runs, or ran last."""


def read_server(folder: ServerFolder) -> ServerNow:
    """The server of this folder, now."""
    keys, known, up = site_keys.enrolled(folder), site_keys.nodes(folder.database), folder.is_up
    name = queue.latest(folder)
    return ServerNow(
        federation=folder.config.name,
        up=up,
        enrolled=tuple(keys),
        online=tuple(site for site, key in keys.items() if up and key.pem in known and known[key.pem].online),
        waiting=tuple(entry.name for entry in queue.waiting(folder)),
        study=None if name is None else overview.read_run(folder.runs / name, flwr_home=folder.flwr_home),
    )


def describe_server(now: ServerNow) -> str:
    """The server in a few lines for a person, without its study."""
    up = "up" if now.up else "NOT running; `consilium-server up` starts it"
    lines = [
        f"{now.federation}: the server is {up}",
        f"{len(now.online)} of {len(now.enrolled)} enrolled sites online",
    ]
    if now.up and (lacking := [site for site in now.enrolled if site not in now.online]):
        lines[-1] += f"; not {', '.join(lacking)}"
    if now.waiting:
        lines.append(f"waiting: {', '.join(now.waiting)}")
    return "\n".join(lines)


@dataclass(frozen=True)
class SiteOfServer:
    """One site of a federation, now."""

    name: str
    institution: str
    fingerprint: str | None
    """Of its key; None if none is enrolled."""
    enrolled: datetime | None
    """When the server first knew the key."""
    online: bool
    seen: datetime | None


def read_sites(folder: ServerFolder) -> tuple[SiteOfServer, ...]:
    """Every site that the federation names or that has a key, by name."""
    keys, known, up = site_keys.enrolled(folder), site_keys.nodes(folder.database), folder.is_up
    sites = []
    for name in sorted({*folder.config.sites, *keys}):
        key, about = keys.get(name), folder.config.sites.get(name)
        node = None if key is None else known.get(key.pem)
        sites.append(
            SiteOfServer(
                name=name,
                institution=about.institution if about else "",
                fingerprint=None if key is None else key.fingerprint,
                enrolled=None if node is None else node.enrolled,
                online=node is not None and node.online and up,
                seen=None if node is None else node.seen,
            )
        )
    return tuple(sites)
