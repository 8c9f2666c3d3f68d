"""One study from its folder to its end, whatever federation carries it.

A study is started in the same way on one machine and between hospitals: an earlier run of the
name is set aside, the server's log is shown as it grows, a server that crashed is run again from its
last checkpoint as long as that helps, and the status says how it ended.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common import log
from common.config import StudyConfig
from common.errors import ConsiliumError, LaunchError, StorageError
from common.files import write_atomically
from common.polling import POLL_S
from common.processes.tail import Tail
from common.settings import to_yaml
from server.config import Tracking
from server.deployment.superlink import Federation
from server.storage import checkpoint, start_weights, status

MOST_CRASHES = 3
"""Of the ServerApp, without a round in between."""

_BEGIN_S = 300.0
_FULL_BYTES = 4 * 2**20
"""Bytes; with fewer left on the disk, a failed study is explained by the full disk."""


@dataclass(frozen=True)
class StudyEnd:
    """How a study ended."""

    finished: bool
    """False as well for a study that is incomplete, so that it is not taken for a finished one."""
    reason: str
    incomplete: bool = False
    """All rounds are done, but an `evaluate` site did not score the final model."""

    @classmethod
    def of(cls, now: status.Status) -> "StudyEnd":
        """The outcome of a study that is over."""
        return cls(now.status == "finished", now.reason, now.status == status.INCOMPLETE)

    @property
    def word(self) -> str:
        """How it ended, in one word or two."""
        return "finished" if self.finished else status.INCOMPLETE if self.incomplete else "failed"


def follow(federation: Federation, run_dir: Path, shown: int) -> StudyEnd:
    """Show the server's log as it grows until the study ended. Raises LaunchError if it cannot end.

    `shown` bytes of it are of an earlier start and not shown again.
    """
    show = Tail(run_dir / "server.log", shown)
    begun_by, crashes = time.monotonic() + _BEGIN_S, _Crashes(run_dir)
    while True:
        show()
        run_again = federation.look()
        now = status.read_status(run_dir)
        federation.show_approvals(now.approvals if now is not None and now.status == "running" else None)
        if now is not None and federation.has_superlink and not run_again:
            now = now.or_died()
            if now.is_over:
                show()
                return StudyEnd.of(now)
            crash = now.reason if now.status == "crashed" else None
            if now.status == "starting" and time.monotonic() > begun_by:
                logs = federation.work / "logs"
                crash = f"it did not begin within {_BEGIN_S:.0f} s; the logs in {logs} tell why"
            if now.status == "starting" and (why := federation.why_the_run_failed()) is not None:
                crash = f"it ended before it began: {' '.join(why.split())}"
            if crash is not None:
                _require_room(run_dir, crash)
                if crashes.is_hopeless():
                    reason = (
                        f"the server crashed {MOST_CRASHES + 1} times without a round in between: {crash}"
                    )
                    status.set_status(run_dir, "failed", reason)
                    return StudyEnd(False, reason)
                log.warn(f"the server crashed ({crash}); it goes on from the last checkpoint")
                run_again = True
        if run_again:
            status.set_status(run_dir, "starting", "the server is started again")
            _run_again(federation)
            begun_by = time.monotonic() + _BEGIN_S
        time.sleep(POLL_S)


def _run_again(federation: Federation) -> None:
    """Run the study once more. Raises LaunchError."""
    try:
        federation.run_study()
    except LaunchError:
        if federation.has_superlink:
            raise
        # It died under the command; when it is back, the study is run again.


def _require_room(run_dir: Path, crash: str) -> None:
    """Raises LaunchError if the server died on a full disk, where a new one would die as well."""
    if (reason := _room_reason(run_dir)) is not None:
        log.warn(f"the server crashed ({crash})")
        raise LaunchError(reason)


def _room_reason(run_dir: Path) -> str | None:
    """On a full disk each program fails in its own words, Flower's do not mention it; so ask the disk."""
    free = shutil.disk_usage(run_dir).free
    if free >= _FULL_BYTES:
        return None
    return (
        f"files of the study could not be written: No space left on the disk of {run_dir} ({free // 1024} KiB). Free "
        "some, then go on from the last checkpoint with `consilium-server resume`"
    )


@dataclass
class _Crashes:
    """Counts crashes of the server since it last finished a round."""

    run_dir: Path
    number: int = 0
    last: Path | None = None

    def is_hopeless(self) -> bool:
        """Count one crash; True if there were too many."""
        latest = checkpoint.latest(self.run_dir)
        self.number = self.number + 1 if latest == self.last else 1
        self.last = latest
        return self.number > MOST_CRASHES


def write_server_settings(
    study: StudyConfig,
    run_dir: Path,
    node_ids: Mapping[str, int],
    *,
    synthetic: bool,
    fingerprints: Mapping[str, str] | None = None,
    tracking: Sequence[Tracking] = (),
) -> Path:
    """server.yaml and the study as run; returns the first.

    Raises ConfigError if the study starts from weights that are not there.
    """
    first = start_weights.place_of(study, run_dir.parent)
    study_file, settings = run_dir / "study.yaml", run_dir / "server.yaml"
    write_atomically(study_file, to_yaml(study.model_dump(mode="json")))
    values = {
        "study": str(study_file.resolve()),
        "run_dir": str(run_dir.resolve()),
        "node_ids": dict(node_ids),
        "fingerprints": dict(fingerprints or {}),
        "synthetic": synthetic,
        "tracking": [one.model_dump(mode="json") for one in tracking],
        "log": log.form(),
        "start_from": None if first is None else str(first),
    }
    write_atomically(settings, to_yaml(values))
    return settings


@contextmanager
def run_folder(run_dir: Path, *, resume: bool) -> Iterator[None]:
    """The run's folder, with this launcher's own log and, whatever happens, a status that says how it ended."""
    if not resume:
        set_aside(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with log.also_to(run_dir / "launcher.log"):
        status.set_status(run_dir, "starting", "the server and the sites are started")
        try:
            yield
        except LaunchError as error:
            reason = _room_reason(run_dir) or str(error)
            status.set_status(run_dir, "failed", reason)
            raise LaunchError(reason) from error
        except ConsiliumError as error:  # such as a study that this version cannot read
            with suppress(StorageError):  # a full disk has another word for it
                status.set_status(run_dir, "failed", " ".join(str(error).split()))
            raise
        except KeyboardInterrupt:
            if (now := status.read_status(run_dir)) is not None and not now.is_over:
                status.set_status(
                    run_dir, "crashed", "it was stopped; `consilium-server resume` goes on with it"
                )
            raise


def set_aside(run_dir: Path) -> None:
    """Move an earlier run of this name away; a new run never writes over an old one."""
    if not run_dir.exists() or not any(run_dir.iterdir()):
        return
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    run_dir.rename(aside)
    log.event(f"an earlier run was there; it is now {aside}")


def size(path: Path) -> int:
    """In bytes; 0 for a file that is not there."""
    return path.stat().st_size if path.exists() else 0
