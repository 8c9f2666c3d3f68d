"""State of a server now: its sites, the study that runs or ran last, the queue.

Everything is read from the server's folder, so this works while the server runs and while it does not.
"""

from dataclasses import dataclass
from datetime import datetime

from common.errors import ConsiliumError
from common.settings import Frozen
from server.deployment import overview, queue, site_keys
from server.deployment.folder import ServerFolder
from server.transport import gateway_record
from server.transport.gateway_record import GatewayFacts


class ServerNow(Frozen):
    """One server, now."""

    federation: str
    up: bool
    enrolled: tuple[str, ...]
    online: tuple[str, ...]
    waiting: tuple[str, ...]
    """Studies, the next one first."""
    study: overview.Overview | None
    """The study that runs, or ran last."""
    problems: tuple[str, ...] = ()
    """Files that cannot be read, a sentence each; what they hold is missing here."""


def read_server(folder: ServerFolder) -> ServerNow:
    """The server of this folder, now. A file that cannot be read is a problem, not an error."""
    files, up, study = site_keys.read_key_files(folder), folder.is_up, None
    keys, problems = files.keys, list(files.unreadable.values())
    nodes: dict[bytes, site_keys.Node] = {}
    try:
        nodes = site_keys.nodes(folder.database)
    except ConsiliumError as error:
        problems.append(str(error))
    try:
        if (name := queue.latest(folder)) is not None:
            study = overview.read_run(folder.runs / name, flwr_home=folder.flwr_home)
    except ConsiliumError as error:
        problems.append(str(error))
    return ServerNow(
        federation=folder.config.name,
        up=up,
        enrolled=tuple(sorted({*keys, *files.unreadable})),
        online=tuple(site for site, key in keys.items() if up and key.pem in nodes and nodes[key.pem].online),
        waiting=tuple(entry.name for entry in queue.waiting(folder)),
        study=study,
        problems=tuple(problems),
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
    lines += now.problems
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
    problem: str = ""
    """What is wrong with its key file; empty for a file that can be read."""
    since: datetime | None = None
    """When it connected, while it is online."""
    gateway: GatewayFacts | None = None
    """What its gateway says of itself, while it is online."""


def read_sites(folder: ServerFolder) -> tuple[SiteOfServer, ...]:
    """Every site that the federation names or that has a key, by name."""
    files, known, up = site_keys.read_key_files(folder), site_keys.nodes(folder.database), folder.is_up
    keys, facts, sites = files.keys, gateway_record.read(folder.gateways), []
    for name in sorted({*folder.config.sites, *keys, *files.unreadable}):
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
                problem=files.unreadable.get(name, ""),
                since=node.since if node is not None and up else None,
                gateway=facts.get(node.node_id) if node is not None and node.online and up else None,
            )
        )
    return tuple(sites)
