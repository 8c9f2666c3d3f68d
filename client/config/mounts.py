"""What a site's container must see of its machine: every folder and file that site.yaml names.

Found from the settings' types, so that no kind of data can be forgotten. What a container sees lies there at
the same place as outside, so one site.yaml is right in both. Nothing is looked up on the disk: the
question is asked inside a container, where the folders are not. `site.sh` checks that they exist.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel

from client.config.data import CsvData, Ham10000Data
from client.config.site import SiteConfig
from common.errors import ConfigError

SITE_FOLDER = PurePosixPath("/site")
"""Where a start-up kit lies in its containers."""
SOCKET = "link/trainer.sock"
"""Where the kit's gateway and its health check look for the trainer."""

_ALREADY = ("state", "weights", "link")
"""Folders of the kit that its docker-compose.yml mounts."""
_SYSTEM = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt/consilium", "/proc", "/run", "/sbin", "/site", "/sys",
    "/tmp", "/usr/bin", "/usr/lib", "/usr/local/bin", "/usr/local/lib", "/venv",
)  # fmt: skip
"""Folders of the image that a mount on or above them would hide."""
_CONTROL = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_KERNEL = ("/dev", "/proc", "/sys")


@dataclass(frozen=True, order=True)
class Mount:
    """One folder or file."""

    target: str
    """Where the trainer looks for it."""
    source: str
    """Where it lies on the machine; the same, unless site.yaml names it relative to itself."""
    writable: bool
    setting: str


def mounts(site: SiteConfig, kit: Path, name: str | None = None) -> list[Mount]:
    """What has to be mounted beside the kit's own folders, each place once.

    `site` is as it was written, with relative paths; `kit` is the kit's folder on the machine, `name` the site that
    it was made for. Raises ConfigError that lists everything that no container can have.
    """
    problems = []
    if name is not None and site.name != name:
        problems.append(
            f"name: found {site.name}, but this kit is of {name}; the server knows its key by that name"
        )
    if site.socket is not None and _inside(site.socket) != str(SITE_FOLDER / SOCKET):
        problems.append(
            f"socket: found {site.socket}; expected {SOCKET}, where the kit's gateway looks for it"
        )
    found = []
    for setting, path, writable in _named(site):
        if problem := _problem(path, kit):
            problems.append(f"{setting}: {problem}")
        else:
            found.append(Mount(_inside(path), os.path.normpath(kit / path), writable, setting))
    read, written = (
        {mount.target: mount.setting for mount in found if mount.writable is way} for way in (False, True)
    )
    problems += [
        f"{written[place]}: it is the folder of {read[place]}, which may not be written to; give another"
        for place in read.keys() & written.keys()
    ]
    if problems:
        raise ConfigError(
            "\n".join(["site.yaml does not fit this kit:", *(f"  {line}" for line in problems)])
        )
    return _merged(found)


def _named(site: SiteConfig) -> Iterator[tuple[str, Path, bool]]:
    """Setting, path and whether the trainer writes there."""
    yield from ((f"data.{name}", path, False) for name, path in _paths(site.data))
    match site.data:
        case CsvData(images=None, labels=table):
            yield "data.labels", table.parent, False
        case Ham10000Data(images=(), metadata=table):
            yield "data.metadata", table.parent, False
        case _:
            pass
    if site.weights_dir is not None:
        yield "weights_dir", site.weights_dir, False
    if site.overlap_secret is not None:
        yield "overlap_secret", site.overlap_secret, False
    if site.roster is not None:
        yield "roster", site.roster, False
    if site.ledger_witness is not None:
        yield "ledger_witness", site.ledger_witness.parent, True
    yield "state_dir", site.state_dir, True


def _paths(settings: BaseModel) -> Iterator[tuple[str, Path]]:
    for name in type(settings).model_fields:
        match getattr(settings, name):
            case Path() as path:
                yield name, path
            case [Path(), *_] as paths:
                yield from ((f"{name}.{place}", path) for place, path in enumerate(paths))
            case BaseModel() as inner:
                yield from ((f"{name}.{below}", path) for below, path in _paths(inner))


def _inside(path: Path) -> str:
    """The path in the container."""
    return os.path.normpath(SITE_FOLDER / path)


def _problem(path: Path, kit: Path) -> str | None:
    """Why this path cannot be mounted, or None."""
    target, source = PurePosixPath(_inside(path)), PurePosixPath(os.path.normpath(kit / path))
    if _CONTROL.search(str(source)):
        return f"{str(path)!r} has a control character or letters that are not UTF-8; rename the folder"
    if path.parts[:1] and path.parts[0].startswith("~"):
        return f"{path}: ~ is another folder in a container; write the whole path, from / on"
    if any(PurePosixPath(system).is_relative_to(target) for system in _SYSTEM) or any(
        target.is_relative_to(kernel) for kernel in _KERNEL
    ):
        return f"{path} would hide {target} of the container; give a folder that holds nothing but what is needed"
    if PurePosixPath(kit / "site.key").is_relative_to(source):
        return f"{path} holds this kit with its private key, which the trainer must not see; give a folder below it"
    if source.is_relative_to(kit / "link") or target.is_relative_to(SITE_FOLDER / "link"):
        return f"{path} lies in link/, which the gateway sees; give another folder"
    return None


def _merged(found: list[Mount]) -> list[Mount]:
    """Without what is twice, lies in another folder of the list, or is a folder that the kit mounts itself."""
    own = [Mount(str(SITE_FOLDER / name), "", name != "weights", "") for name in _ALREADY]
    kept: list[Mount] = []
    for mount in sorted(found, key=lambda mount: (mount.target, not mount.writable)):
        place = PurePosixPath(mount.target)
        # The closest folder above decides whether it may be written to.
        above = [other for other in (*own, *kept) if place.is_relative_to(other.target)]
        closest = max(above, key=lambda other: len(other.target), default=None)
        if closest is None or closest.writable != mount.writable:
            kept.append(mount)
    return kept


# --- as text ------------------------------------------------------------------------------------


def compose(site: SiteConfig, found: list[Mount]) -> str:
    """A compose file beside the kit's own. Its first lines are for `site.sh`: the device, and what must exist."""
    lines = ["# Written by ./site.sh from site.yaml: what the trainer sees. It is written again each time."]
    lines += [f"# device: {site.devices[0]}", *(f"# needs: {mount.source}" for mount in found)]
    lines += ["services:", "  trainer:", "    volumes:" if found else "    volumes: []"]
    for mount in found:
        source, target = (
            json.dumps(path.replace("$", "$$"), ensure_ascii=False) for path in (mount.source, mount.target)
        )
        lines.append(
            f"      - {{type: bind, source: {source}, target: {target}, read_only: {json.dumps(not mount.writable)}, "
            "bind: {create_host_path: false}}"
        )
    return "\n".join(lines) + "\n"


def trainer_unit(found: list[Mount]) -> str:
    """A drop-in for the trainer's systemd unit: what it reads is there, below /tmp as well."""
    lines = ["# From site.yaml, by ./site.sh units.", "[Service]"]
    lines += [
        f"{'BindPaths' if mount.writable else 'BindReadOnlyPaths'}={_quoted(f'-{mount.source}')}"
        for mount in found
    ]
    return "\n".join(lines) + "\n"


def gateway_unit(found: list[Mount]) -> str:
    """A drop-in for the gateway's systemd unit: it sees nothing of what the trainer reads and writes."""
    lines = ["# From site.yaml, by ./site.sh units.", "[Service]"]
    lines += [f"InaccessiblePaths={_quoted(f'-{mount.source}')}" for mount in found]
    return "\n".join(lines) + "\n"


def _quoted(path: str) -> str:
    """A path as systemd reads it: one word, no specifier."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
