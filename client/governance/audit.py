"""Audit log of a site: what was received and what was sent, in a file whose edits can be detected.

One JSON object a line; each holds the hash of the line before it and, at its end, its own:

    {"previous":"<hash of the line before>","time":...,"event":...,...,"salt":...,"hash":"<SHA-256 of all before this>"}

so `verify` detects a changed byte, a removed line and an inserted line. It cannot detect lines cut off at
the end, or a chain that was computed again, without a hash that was noted elsewhere: `verify` prints the
last one, and checks for an earlier one. The server notes one with each answer, signed with the site's key
(`common/wire/signed_heads.py`). The salt is 16 random bytes, so that nothing of a line can be guessed from its hash.

An answer is written to the disk before it is handed to the gateway; an answer that cannot be
recorded does not leave. After a power cut the last line may be torn. Nothing is ever removed:
the torn piece stays where it is, and the next line records its hash.

The chain itself is `hash_chain.py`, what the lines say `audit_fields.py`.
"""

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from client.governance.hash_chain import CHANGED, BrokenError, Chain, Fields, follow, line_after, whole
from common import log
from common.errors import StorageError
from common.polling import wait_until

FILE = "audit.jsonl"
"""Name of the log in the site's `state_dir`."""

_REMEMBERED = timedelta(days=2)
_LOCK_S = 30.0


# --- detecting edits -----------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Result of `verify`."""

    num_lines: int
    """Lines up to the first broken one."""
    num_torn: int
    """Among them, pieces of lines that a power cut or a full disk left, each with a line that records it."""
    head: str
    """Hash of the last whole line; worth noting down somewhere else."""
    problem: str | None = None
    """A sentence on the first broken line, None if there is none."""


def verify(path: Path, expected: str | None = None) -> Verdict:
    """Read the whole log; `expected` is a hash that was noted down earlier. Raises StorageError."""
    last_whole, seen, problem = Chain(), expected is None, None
    num_lines = 0
    with _opened(path, os.O_RDONLY, fcntl.LOCK_SH) as file:
        try:
            for chain in _chains(file):
                num_lines = chain.num_lines
                last_whole = chain if chain.torn is None else last_whole
                seen = seen or chain.head == expected
        except BrokenError as broken:
            num_lines, problem = broken.line - 1, f"line {broken.line} of {path.name}: {broken}"
    if problem is None and not seen:
        problem = (
            f"no line of {path.name} has the hash {expected}; lines were cut off, or all were written again"
        )
    return Verdict(num_lines, last_whole.num_torn, last_whole.head, problem)


def show(path: Path) -> Iterator[str]:
    """The log for a person: time, event and fields, without hashes. Raises StorageError."""
    with _opened(path, os.O_RDONLY, fcntl.LOCK_SH) as file:
        lines = file.read().removesuffix(b"\n").split(b"\n")  # at once: the trainer waits for the lock
    for line in lines:
        fields = whole(line)
        shown = ", ".join(f"{name} {value}" for name, value in fields.items() if name not in _NOT_SHOWN)
        yield f"{fields['time']}  {fields['event']}: {shown}" if fields else "(a torn line, or an edited one)"


def events(path: Path) -> Iterator[Fields]:
    """Fields of each whole line; none without a log. Raises StorageError."""
    if not path.exists():
        return
    with _opened(path, os.O_RDONLY, fcntl.LOCK_SH) as file:
        lines = file.read().removesuffix(b"\n").split(b"\n")
    yield from (fields for line in lines if (fields := whole(line)))


_NOT_SHOWN = {
    "previous", "hash", "time", "event", "sha256", "tensor_names", "fingerprint", "arrays", "asked", "salt",
}  # fmt: skip


def _chains(file: BinaryIO) -> Iterator[Chain]:
    """The chain after each line of a whole log. Raises BrokenError."""
    chain = Chain()
    for line in file:
        if not line.endswith(b"\n"):
            raise BrokenError(chain.num_lines + 1, _NO_END)
        chain, _ = follow(chain, line[:-1])
        yield chain
    if chain.torn is not None:
        raise BrokenError(chain.num_lines, CHANGED)


_NO_END = "it has no end; a power cut does that, and the trainer notes it at its next plan. So does an edit"


@dataclass(frozen=True)
class Work:
    """Work of a site."""

    rounds: int = 0
    """Rounds of training."""
    evaluations: int = 0
    """Sets of weights that were scored."""
    seconds: float = 0.0
    """Of training, scoring and fitting."""


# --- writing ---------------------------------------------------------------------------------


class Audit:
    """The log of one site. Several processes may write to it in turn."""

    def __init__(
        self,
        state_dir: Path,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        salt: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._path = state_dir / FILE
        self._clock, self._salt = clock, salt
        self._file: tuple[int, int] | None = None
        self._read_up_to = 0
        self._chain = Chain()
        self._asked: dict[str, str] = {}  # hash of the last question, by its plan's name
        self._work: dict[str, tuple[datetime, Work]] = {}
        self._charged: tuple[int, str] | None = None

    def append(self, event: str, fields: Fields) -> None:
        """Write one line and wait until it is on the disk. Raises StorageError."""
        with _opened(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX) as file:
            tail = self._catch_up(file)
            chain, start = self._chain, b""
            if tail:
                chain, _ = follow(chain, tail)
                start = b"\n"
            now = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
            if chain.torn is not None:
                log.warn(
                    f"line {chain.num_lines} of {self._path.name} is torn; it stays, and the next line records its hash"
                )
                record = line_after(chain.head, {"time": now, "event": "torn", "sha256": chain.torn})
                chain, _ = follow(chain, record[:-1])
                start += record
            line = line_after(chain.head, {"time": now, "event": event, **fields, "salt": self._salt()})
            self._write(file.fileno(), start + line)
            self._catch_up(file)

    @property
    def head(self) -> str:
        """Hash of the last whole line, as of the last `append`. It leaves the site, signed."""
        return self._chain.head

    @property
    def charged(self) -> tuple[int, str] | None:
        """Number and hash of the last charge in the privacy ledger, as of the last `append`; None without any."""
        return self._charged

    def work_since(self, moment: datetime) -> "Work":
        """Work answered since then, in the last two days; as of the last `append`."""
        done = [work for when, work in self._work.values() if when >= moment]
        return Work(
            sum(work.rounds for work in done),
            sum(work.evaluations for work in done),
            sum(work.seconds for work in done),
        )

    def _catch_up(self, file: BinaryIO) -> bytes:
        """Follow the lines that any process added; returns an unfinished line after them."""
        about = os.fstat(file.fileno())
        if self._file != (about.st_dev, about.st_ino):  # the first time, or the old file was moved away
            self._file, self._read_up_to, self._chain = (about.st_dev, about.st_ino), 0, Chain()
            # What is spent stays spent, whatever became of the log.
        if about.st_size < self._read_up_to:
            raise StorageError(f"{self._path} is shorter than it was: it was cut. {_WHAT_TO_DO}")
        file.seek(self._read_up_to)
        for line in file:
            if not line.endswith(b"\n"):
                return line
            try:
                self._chain, fields = follow(self._chain, line[:-1])
            except BrokenError as broken:
                raise StorageError(f"line {broken.line} of {self._path}: {broken}. {_WHAT_TO_DO}") from None
            self._read_up_to += len(line)
            self._remember(fields)
        return b""

    def _write(self, descriptor: int, data: bytes) -> None:
        written = os.write(descriptor, data)  # in one piece, so that a cut tears at most the last line
        os.fsync(descriptor)
        if written < len(data):
            raise StorageError(
                f"{self._path} took {written} of {len(data)} bytes; free some space on its disk"
            )
        if self._read_up_to == 0:  # the file's name must survive a power cut, too
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _remember(self, fields: Fields) -> None:
        if fields.get("event") == "charge" and isinstance(number := fields.get("number"), int):
            self._charged = (number, str(fields.get("ledger")))
        if fields.get("event") == "plan":
            self._asked[str(fields.get("plan_id"))] = str(fields.get("sha256"))
        counts, seconds = fields.get("counts"), fields.get("seconds")
        if fields.get("event") != "sent" or not (
            isinstance(counts, dict) or isinstance(seconds, int | float)
        ):
            return
        counts = counts if isinstance(counts, dict) else {}
        work = Work(
            rounds=int(bool(counts.get("examples"))),
            evaluations=int(bool(counts.get("scored")) or fields.get("step") == "score"),
            seconds=float(seconds) if isinstance(seconds, int | float) else 0.0,
        )
        when, plan_id = datetime.fromisoformat(str(fields["time"])), str(fields["plan_id"])
        # Sent again is not done again. The server chooses the names of plans, so another question under a name that
        # was used before counts for itself. What failed is tried again, and costs its time again.
        question = f"{plan_id} {self._asked.pop(plan_id, '')}"
        if fields.get("kind") == "failure":
            question = f"{question} {self._read_up_to}"
        self._work.setdefault(question, (when, work))
        self._work = {p: done for p, done in self._work.items() if done[0] >= when - _REMEMBERED}


_WHAT_TO_DO = "Find out who did that, move the file away and keep it; the next plan starts a new one."


@contextmanager
def _opened(path: Path, flags: int, lock: int) -> Iterator[BinaryIO]:
    """The log, locked. Raises StorageError for whatever the disk cannot do."""
    try:
        if flags & os.O_CREAT:
            path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, flags | os.O_CLOEXEC, 0o600), "rb") as file:
            _lock(file, path, lock)
            yield file
    except OSError as error:
        raise StorageError(
            f"{path} cannot be used: {error.strerror}; without its audit log nothing leaves this site. "
            "Make state_dir a folder that the trainer may write to, with some space."
        ) from error


def _lock(file: BinaryIO, path: Path, kind: int) -> None:
    if not wait_until(lambda: _is_locked(file, kind), _LOCK_S):
        raise StorageError(f"{path} is locked by another process since {_LOCK_S:.0f} s; end it")


def _is_locked(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
