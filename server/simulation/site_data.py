"""What sites say of their images: a digest of each site, kept in a run's folder.

Sites of the same names may have other images, and a run of those is no run of these. The digest is of what the settings
say of data and split, of the tables that they name, and of what federation.yaml says of the site. What has no part in
the figures (state, device, threads, cache, policy) is not in it. Images themselves are not read: one that was changed
under its name is not noticed.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from common.config import Name
from common.files import read_json, sha256_of, write_json
from common.formats import yaml_text
from common.settings import Frozen
from server.config import SimulatedSites

FILE = "sites.json"
"""In a run's folder."""
_TABLES = frozenset({".csv", ".tsv", ".tab", ".txt", ".json"})
"""Files that are hashed. Of others, such as archives of images, the size counts."""

Digests: TypeAlias = Mapping[str, str]
"""SHA-256 in hexadecimal digits, by site."""
Origin: TypeAlias = Literal["these sites", "not known"] | tuple[str, ...]
"""Of which sites a run is; names are those of sites whose data or split were others."""


class SiteData(Frozen):
    """What a run's sites had."""

    sites: dict[Name, str]


def digests(sites_dir: Path, federation: SimulatedSites, names: Collection[str]) -> Digests:
    """The digest of each of these sites that has settings in `sites_dir`."""
    return {
        name: _digest(path, federation, name)
        for name in names
        if (path := sites_dir / f"{name}.yaml").is_file()
    }


def keep(run_dir: Path, sites: Digests) -> None:
    """Write what the sites of a run have into its folder. Raises StorageError."""
    write_json(run_dir / FILE, SiteData(sites=dict(sites)))


def origin(run_dir: Path, sites: Digests) -> Origin:
    """Whether a run is of these sites. Raises StorageError."""
    kept = read_json(run_dir / FILE, SiteData)
    if kept is None:
        return "not known"
    others = tuple(name for name, digest in kept.sites.items() if sites.get(name) != digest)
    return others or "these sites"


def _digest(path: Path, federation: SimulatedSites, name: str) -> str:
    content = path.read_bytes()
    try:
        settings = yaml_text.load(content)
    except yaml_text.YamlError:
        settings = None
    said = settings if isinstance(settings, dict) else {}
    about = {
        "synthetic": federation.synthetic,
        "classes": sorted(federation.classes),
        "num_images": federation.sites.get(name),
        "data": _with_tables(said.get("data"), path.parent),
        "split": said.get("split"),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _with_tables(value: Any, home: Path) -> Any:
    """`value` with where a path leads in place of its text, and with the content of the file there."""
    match value:
        case dict():
            return {str(key): _with_tables(inner, home) for key, inner in value.items()}
        case list():
            return [_with_tables(inner, home) for inner in value]
        case str():
            return _place(value, home)
        case _:
            return value


def _place(text: str, home: Path) -> Any:
    try:
        path = (home / Path(text).expanduser()).resolve()
        if path.is_file():
            content = sha256_of(path) if path.suffix.lower() in _TABLES else path.stat().st_size
            return [str(path), content]
        return str(path) if path.is_dir() else text
    except (OSError, RuntimeError, ValueError):  # no path at all, or one that this user may not follow
        return text
