"""Where the server runs and who is enrolled. Owned by the operator, never sent to a site."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from common.config import Name
from common.config.types import Line
from common.network.hosts import EVERY_IPV4, listening_address, reachable_host
from common.settings import Frozen

Host: TypeAlias = Annotated[str, AfterValidator(reachable_host)]


NoticeAddress: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9+.-]+://.+$", max_length=1000)]


def _listed(hosts: object) -> object:
    """A single host, written without brackets, as a list of one."""
    return (hosts,) if isinstance(hosts, str) else hosts


def _once(hosts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(hosts))


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(
            f"found {path}, expected an absolute path; Flower starts the server in a folder of its own"
        )
    return path


def _one_of_each(trackers: "tuple[Tracking, ...]") -> "tuple[Tracking, ...]":
    if len({one.kind for one in trackers}) < len(trackers):
        raise ValueError("found two entries of one kind, expected one of each at most")
    return trackers


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if not parts.scheme:
        raise ValueError("expected an address with its scheme, such as https://mlflow.example.org")
    if parts.password or parts.username:
        raise ValueError(
            "found a user in the address; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    return uri


class TensorBoardTracking(Frozen):
    """Figures of the rounds as TensorBoard reads them, in a folder per study."""

    kind: Literal["tensorboard"] = "tensorboard"
    dir: Annotated[Path, AfterValidator(_absolute)]
    """Absolute path of a folder on the server's machine."""


class MlflowTracking(Frozen):
    """Figures of the rounds in an MLflow run per study, at the operator's own MLflow server."""

    kind: Literal["mlflow"] = "mlflow"
    uri: Annotated[str, AfterValidator(_without_password)]
    """Address of the server, as in `https://mlflow.example.org`. A password or token belongs into MLflow's own
    environment variables."""
    experiment: Line = "consilium"
    """Name of the experiment at that server; it is made if it is not there."""


Tracking: TypeAlias = Annotated[TensorBoardTracking | MlflowTracking, Field(discriminator="kind")]
"""Where figures of the rounds go besides rounds.jsonl."""


class ServerConfig(Frozen):
    """One run of one study on this server. Paths are absolute: Flower starts the server in a
    folder of its own."""

    study: Path
    """The study's YAML."""
    run_dir: Path
    """Where weights, checkpoints, rounds.jsonl and the report go."""
    node_ids: Annotated[dict[Name, int], Field(min_length=1)]
    """Site name by Flower node, as enrolled with the site's key; a site cannot choose its name."""
    fingerprints: dict[Name, str] = {}  # noqa: RUF012  (pydantic copies it)
    """Fingerprint of each site's enrolled key, with which it signs the head of its audit log. A site that is not named
    is not compared."""
    log: Literal["readable", "json"] = "readable"
    """Form of the log: for people, or one JSON object a line."""
    synthetic: bool = False
    """The images were generated; every output says so."""
    tracking: Annotated[tuple[Tracking, ...], AfterValidator(_one_of_each)] = ()
    """Where figures of the rounds go besides rounds.jsonl, all at the operator's. Nothing by default."""
    start_from: Path | None = None
    """Safetensors file with the study's tensors to begin with, instead of asking a site."""


class SiteEntry(Frozen):
    """One hospital, as the operator knows it."""

    institution: Line = ""
    """For people: on its start-up kit and in lists."""
    notify: tuple[NoticeAddress, ...] = ()
    """Addresses of people at this site (apprise's), who hear when a study waits for their approval and when the site
    is late. The server sends this; the site sends nothing."""


class Address(Frozen):
    """Where the sites find the server."""

    hosts: Annotated[tuple[Host, ...], Field(min_length=1), BeforeValidator(_listed), AfterValidator(_once)]
    """DNS names and addresses in its certificate, without port; the sites connect to the first. An umlaut domain is
    put into the form that certificates have (`xn--`)."""
    port: Annotated[int, Field(ge=1, le=65535)] = 9092
    """The one port that has to be open to the sites."""
    listen: Annotated[str, AfterValidator(listening_address)] = EVERY_IPV4
    """Address of this machine that the server listens on; 0.0.0.0 is every one, :: every one with IPv6."""


class FederationConfig(Frozen):
    """One federation between institutions: `federation.yaml` in the server's folder."""

    name: Name
    """Of the federation, for people."""
    server: Address
    """How the sites reach the server."""
    sites: Annotated[dict[Name, SiteEntry], Field(min_length=1)]
    """The hospitals, by the name that studies use."""
    synthetic: bool = False
    """The images were generated; every output says so."""
    tracking: Annotated[tuple[Tracking, ...], AfterValidator(_one_of_each)] = ()
    """Where figures of the rounds go besides rounds.jsonl, all at the operator's. Nothing by default."""
    notify: tuple[NoticeAddress, ...] = ()
    """Addresses of the operator (apprise's: `mailtos://...`, a chat, a web hook), who hears when a study is over, waits
    for approval or waits for a site that is late. They may hold passwords: keep the file to yourself."""

    @field_validator("sites")
    @classmethod
    def _differ(cls, sites: dict[str, SiteEntry]) -> dict[str, SiteEntry]:
        spelled: dict[str, str] = {}
        for name in sites:
            other = spelled.setdefault(name.lower(), name)
            if other != name:
                raise ValueError(
                    f"{other} and {name} differ in capital letters only, which file systems and people take for one; "
                    "rename one of them"
                )
        return sites


class SimulatedSites(Frozen):
    """What `consilium-site simulate` says about the sites it wrote."""

    synthetic: bool
    classes: tuple[Name, ...]
    sites: dict[Name, int]
    """Images by site."""
    class_images: dict[Name, dict[Name, int]] = Field(default_factory=dict)
    """Images by site and class, of sites that were joined; empty: not counted."""
