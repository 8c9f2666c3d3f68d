"""A federation in containers on one machine: what docker-compose.yml needs before and besides it.

Between institutions each side makes its own keys and the operator enrols them one by one. Here all
sides are one person's, so one service makes everything again at every `docker compose up`, and hands each
site its part on a volume that no other site sees. Runs are kept. The compose file itself is the
pattern for further sites: what it says of its last one is said of them, with their number.
"""

import copy
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from common import keys, lock, log
from common.config import StudyConfig
from common.errors import ConfigError
from common.files import write_atomically
from common.formats import yaml_text
from common.settings import load_settings, to_yaml, validate_settings
from server.config import Address, FederationConfig, SiteEntry
from server.deployment import certificates, queue

if TYPE_CHECKING:
    from server.config import SimulatedSites

HOST = "server"
"""The server's name on the sites' networks: its service in docker-compose.yml."""
LOOPBACK = ("localhost", "127.0.0.1")
"""The server speaks to itself, too."""
MOST_SITES = 100
"""The images have a folder for so many keys: see Dockerfile.gpu."""

Compose: TypeAlias = dict[str, Any]
"""A compose file as YAML has it. Nothing of it is kept: it goes in and comes out as text."""


# --- before the server starts --------------------------------------------------------------


def set_up(sites: Path, study: Path, server: Path, keys_dir: Path, over: Path) -> None:
    """Make the server's folder, and in KEYS/1, KEYS/2, ... what each site's gateway needs.

    `sites` was written by `consilium-site simulate --containers`. Raises ConfigError.
    """
    from server.simulation.simulate import load_federation  # which imports Flower

    _require_idle(server)
    federation = load_federation(sites)
    fitted = fit(load_settings(study, StudyConfig, "study"), federation)
    config = FederationConfig(
        name="containers",
        server=Address(hosts=(HOST,)),
        sites={name: SiteEntry() for name in federation.sites},
        synthetic=federation.synthetic,
    )
    for old in ("keys", "sites", "flower", "queue", "running"):
        shutil.rmtree(server / old, ignore_errors=True)
    write_atomically(server / "federation.yaml", to_yaml(config.model_dump(mode="json")))
    write_atomically(server / "study.yaml", to_yaml(fitted.model_dump(mode="json")))
    identity = certificates.make_server_identity(server / "keys", [HOST, *LOOPBACK])
    for number, site in enumerate(federation.sites, start=1):
        _hand_out(keys_dir / str(number), site, identity.ca, server / "sites", config.server.port)
    over.unlink(missing_ok=True)
    log.event(f"made keys for the server and for {', '.join(federation.sites)}")


def _require_idle(server: Path) -> None:
    """Raises ConfigError while a server runs from this folder: an `up` of this project, perhaps of another checkout."""
    if not lock.is_held(server / "up.lock"):
        return
    running = [queue.Entry(path).name for path in (server / "running").glob("*-*")]
    study = f"the study {', '.join(running)}" if running else "a server"
    raise ConfigError(
        f"{study} is running in this Compose project already, perhaps from another checkout (`docker compose ls` shows "
        "which). Wait for its end, or end it there with `docker compose down`; COMPOSE_PROJECT_NAME=second starts a "
        "second federation beside it"
    )


def _hand_out(folder: Path, site: str, ca: Path, enrolled: Path, port: int) -> None:
    pair = keys.make_site_key(folder, site)
    enrolled.mkdir(exist_ok=True)
    shutil.move(pair.public, enrolled / f"{site}.pub")
    pair.private.rename(folder / "site.key")
    shutil.copy(ca, folder / "ca.pem")
    gateway = {
        "site": site,
        "server": f"{HOST}:{port}",
        "socket": "/link/trainer.sock",
    }
    write_atomically(folder / "gateway.yaml", to_yaml(gateway))


def fit(study: StudyConfig, federation: "SimulatedSites") -> StudyConfig:
    """The study, with sites and classes of the images if its own are others."""
    if set(study.sites.all) <= set(federation.sites) and set(study.classes) == set(federation.classes):
        return study
    log.event("the study's sites or classes are not those of the images; all sites of the images train")
    changes = {"classes": federation.classes, "sites": {"train": tuple(federation.sites)}}
    return validate_settings(study.model_dump() | changes, StudyConfig, "study", study.name)


# --- more sites, or fewer ------------------------------------------------------------------


class _Reset(yaml.YAMLObject):
    """Compose's `!reset null`: takes away what the first file says."""

    yaml_tag = "!reset"
    yaml_dumper = yaml_text.Dumper

    @classmethod
    def to_yaml(cls, dumper: yaml.SafeDumper, _data: "_Reset") -> yaml.Node:
        return dumper.represent_scalar(cls.yaml_tag, "null")


def override(compose: str, num_sites: int, num_gpus: int = 0) -> str:
    """A second compose file, with which the first has `num_sites` sites, on so many GPUs.

    Raises ConfigError.
    """
    try:
        base = yaml_text.load(compose)
    except yaml_text.YamlError as error:
        raise ConfigError(f"the compose file cannot be read as YAML: {error}") from error
    services = base.get("services", {}) if isinstance(base, Mapping) else {}
    last = max((int(name[8:]) for name in services if re.fullmatch(r"trainer-\d+", name)), default=0)
    if not last or not {"prepare", "keys", "server", f"gateway-{last}"} <= set(services):
        raise ConfigError(
            "that is not Consilium's docker-compose.yml: it has no services trainer-1 and so on"
        )
    if not 1 <= num_sites <= MOST_SITES:
        raise ConfigError(f"{num_sites} sites: the images have places for 1 to {MOST_SITES}")
    numbers = range(last + 1, num_sites + 1)
    spare = range(num_sites + 1, last + 1)
    out: Compose = {"services": {}, "networks": {}, "volumes": {}}
    command = str(services["prepare"]["command"])
    out["services"]["prepare"] = {
        "command": re.sub(r"--containers \d+", f"--containers {num_sites}", command)
    }
    if numbers:
        out["services"]["keys"] = {"volumes": [f"key-{number}:/keys/{number}" for number in numbers]}
        out["services"]["server"] = {"networks": [f"site-{number}" for number in numbers]}
    for number in numbers:
        for role in ("gateway", "trainer"):
            out["services"][f"{role}-{number}"] = _of_site(services[f"{role}-{last}"], last, number)
        out["networks"][f"site-{number}"] = copy.deepcopy(base["networks"][f"site-{last}"])
        out["volumes"] |= {f"key-{number}": None, f"link-{number}": None}
    for number in spare:
        out["services"] |= {f"{role}-{number}": _Reset() for role in ("gateway", "trainer")}
    for number in range(1, num_sites + 1) if num_gpus > 0 else ():
        trainer = out["services"].setdefault(f"trainer-{number}", {})
        trainer["deploy"] = _on_gpu((number - 1) % num_gpus)
    return yaml_text.dump({key: value for key, value in out.items() if value}, width=110)


def _on_gpu(gpu: int) -> Compose:
    device = {"driver": "nvidia", "device_ids": [str(gpu)], "capabilities": ["gpu"]}
    return {"resources": {"reservations": {"devices": [device]}}}


def _of_site(service: Compose, pattern: int, number: int) -> Compose:
    """What is said of site `pattern`, said of site `number`."""
    text = yaml_text.dump(service)
    for what in ("site-{}", "key-{}", "link-{}", "/sites/{}.yaml"):
        text = text.replace(what.format(pattern), what.format(number))
    changed: Compose = yaml_text.load(text)
    return changed
