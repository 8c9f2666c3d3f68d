"""Orders of the operator: start, resume and stop studies, readmit, enrol and revoke sites.

The command line and the console give them through the functions here, so both check and do the same, and both leave
the same line in `orders.jsonl`: when, who, from where, what. A line is written once the order has been taken.
"""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ValidationError

from common.config import StudyConfig
from common.console.person import user_name
from common.errors import ConfigError, StorageError
from common.settings import Frozen, load_settings
from server.deployment import queue, site_keys
from server.deployment.folder import ServerFolder
from server.storage import requests, status

FILE = "orders.jsonl"
"""Name of the record, in the server's folder; of a simulation in the folder of its run."""

Via: TypeAlias = Literal["command line", "console"]


class Order(Frozen):
    """One line of the record."""

    time: datetime
    by: str
    """User of the machine."""
    via: Via
    order: Literal["start", "resume", "stop", "readmit", "enrol", "revoke"]
    study: str = ""
    site: str = ""
    detail: str = ""
    """Fingerprint of a study or of a key."""


def start(folder: ServerFolder, study: StudyConfig, via: Via) -> queue.Entry:
    """Put a study into the queue. Raises ConfigError, StorageError."""
    if missing := sorted(set(study.sites.all) - site_keys.enrolled(folder).keys()):
        raise ConfigError(
            f"the study names {', '.join(missing)}, whose keys are not enrolled; `consilium-server enrol` "
            "them, or leave them out of the study"
        )
    entry = queue.put(folder, study)
    _record(folder.root, via, "start", study=study.name, detail=study.fingerprint)
    return entry


def resume(folder: ServerFolder, name: str, via: Via) -> queue.Entry:
    """Put a study that broke off or was stopped back into the queue. Raises ConfigError, StorageError."""
    entry = queue.put_back(folder, name)
    _record(folder.root, via, "resume", study=name)
    return entry


def stop(folder: ServerFolder, via: Via, name: str | None = None) -> queue.Entry:
    """Ask the study that runs to stop; with `name`, only if it is this one. Raises ConfigError, StorageError."""
    now = queue.running(folder)
    if now is None:
        raise ConfigError("no study is running")
    if name is not None and now.name != name:
        raise ConfigError(f"study {name} does not run any more; {now.name} does, and is not stopped")
    if not folder.is_up:
        raise ConfigError(
            f"no server runs here, so nothing runs; study {now.name} goes on at the next `consilium-server up`"
        )
    requests.ask_to_stop(folder.runs / now.name)
    _record(folder.root, via, "stop", study=now.name)
    return now


def readmit(run_dir: Path, site: str, via: Via) -> status.Status | None:
    """Ask the study of this folder to send plans to `site` again; returns its status.

    Raises ConfigError, StorageError.
    """
    now = status.read_status(run_dir)
    if now is not None and (run_dir / "study.yaml").exists():
        study = load_settings(run_dir / "study.yaml", StudyConfig, "study")
        if site not in study.sites.all:
            raise ConfigError(f"study {study.name} names no site {site}, only {', '.join(study.sites.all)}")
        if now.status == "finished":
            raise ConfigError(f"study {study.name} is finished; there is no next round")
    requests.ask_to_readmit(run_dir, site)
    root = run_dir.absolute().parent.parent
    at = root if (root / "federation.yaml").exists() else run_dir
    _record(at, via, "readmit", study=run_dir.absolute().name, site=site)
    return now


def enrol(folder: ServerFolder, site: str, public: Path, via: Via) -> site_keys.Key:
    """Let the holder of this key connect as `site`. Raises ConfigError, StorageError."""
    key = site_keys.enrol(folder, site, public)
    _record(folder.root, via, "enrol", site=site, detail=key.fingerprint)
    return key


def revoke(folder: ServerFolder, site: str, via: Via) -> site_keys.Key:
    """Cut a site off. Raises ConfigError, StorageError."""
    key = site_keys.revoke(folder, site)
    _record(folder.root, via, "revoke", site=site, detail=key.fingerprint)
    return key


def read(root: Path) -> Iterator[Order]:
    """Every order on record, the first one first. A line that cannot be read is skipped."""
    try:
        lines = (root / FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield Order.model_validate_json(line)
        except ValidationError:
            continue


def _record(
    root: Path,
    via: Via,
    order: Literal["start", "resume", "stop", "readmit", "enrol", "revoke"],
    *,
    study: str = "",
    site: str = "",
    detail: str = "",
) -> None:
    line = Order(
        time=datetime.now(UTC), by=user_name(), via=via, order=order, study=study, site=site, detail=detail
    )
    text = json.dumps(line.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
    path = root / FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(
                descriptor, f"{text}\n".encode(errors="backslashreplace")
            )  # in one piece, beside other commands
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(
            f"the order was given, and could not be noted in {path}: {error.strerror}; free some space there"
        ) from error
