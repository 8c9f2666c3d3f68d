"""The ledger: what this site's patients have been charged, in a file that only grows.

A line is on the disk before what it pays for is computed. So a trainer that is killed has charged too much at most.
Each line has a number and the hash of the line before. The audit log, whose head the server has signed, names the last
charge as well. A ledger that was edited, cut or put back from an older copy no longer fits, and nothing with privacy
leaves until the right one is back. Ledger and audit log put back together to the same moment are noticed by a witness
(`client/privacy/witness.py`) or by the server's copy of the audit log's heads. So is a site that begins with an empty
`state_dir`.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from client.governance.hash_chain import CHANGED, BrokenError, Chain, follow, line_after
from client.privacy.accountant import Charge
from common.errors import StorageError
from common.polling import wait_until
from common.settings import Frozen

FILE = "privacy-ledger.jsonl"
"""Name of the ledger in the site's `state_dir`."""

_LOCK_S = 30.0


class Entry(Frozen):
    """One line: a charge, and whose it was."""

    number: int
    """From 1, without a gap."""
    time: datetime
    study: str
    fingerprint: str
    what: str
    """What was paid for: `counts`, or a round."""
    noise: float
    rate: float
    steps: int

    @property
    def charge(self) -> Charge:
        """What the accountant needs."""
        return Charge(self.noise, self.rate, self.steps)


@dataclass(frozen=True)
class Ledger:
    """What was read of the file."""

    entries: tuple[Entry, ...] = ()
    hashes: tuple[str, ...] = ()
    """Of the entries' lines."""

    def charges(self, fingerprint: str | None = None) -> list[Charge]:
        """Of one study, or of all."""
        return [entry.charge for entry in self.entries if fingerprint in (None, entry.fingerprint)]

    def has(self, number: int, line_hash: str) -> bool:
        """Whether the line of this number is there, and is that one."""
        return number <= len(self.hashes) and self.hashes[number - 1] == line_hash


def read(state_dir: Path) -> Ledger:
    """The ledger; empty without a file. Raises StorageError if it was edited or cannot be read."""
    path = state_dir / FILE
    if not path.exists():
        return Ledger()
    with _opened(path, os.O_RDONLY, fcntl.LOCK_SH) as file:
        _, _, ledger = _followed(path, file.read())
    return ledger


def append(
    state_dir: Path,
    time: datetime,
    study: str,
    fingerprint: str,
    what: str,
    charge: Charge,
    may: Callable[[Ledger], None] = lambda _: None,
) -> tuple[int, str]:
    """Write one charge and wait until it is on the disk. Returns its number and its line's hash. Raises StorageError.

    `may` looks at what was charged before, while no other process can charge, and raises what it likes.
    """
    path = state_dir / FILE
    with _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX) as file:
        chain, start, ledger = _followed(path, file.read())
        may(ledger)
        if chain.torn is not None:
            stamp = time.isoformat(timespec="seconds")
            record = line_after(chain.head, {"time": stamp, "event": "torn", "sha256": chain.torn})
            chain, _ = follow(chain, record[:-1])
            start += record
        entry = Entry(
            number=len(ledger.entries) + 1,
            time=time,
            study=study,
            fingerprint=fingerprint,
            what=what,
            noise=charge.noise,
            rate=charge.rate,
            steps=charge.steps,
        )
        line = line_after(chain.head, entry.model_dump(mode="json"))
        written = os.write(
            file.fileno(), start + line
        )  # in one piece, so that a cut tears at most the last line
        os.fsync(file.fileno())
        if written < len(start + line):
            raise StorageError(
                f"{path} took {written} of {len(start + line)} bytes; free some space on its disk"
            )
        if entry.number == 1:  # the file's name must survive a power cut, too
            folder = os.open(state_dir, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    chain, _ = follow(chain, line[:-1])
    return entry.number, chain.head


def _followed(path: Path, content: bytes) -> tuple[Chain, bytes, Ledger]:
    """The chain after the last line, what has to be written before the next one, and the ledger."""
    chain, entries, hashes, start = Chain(), [], [], b""
    lines = content.split(b"\n")
    if lines[-1]:
        start = b"\n"  # after a line without its end
    try:
        for line in lines if lines[-1] else lines[:-1]:
            chain, fields = follow(chain, line)
            if fields and fields.get("event") != "torn":
                shown = {name: value for name, value in fields.items() if name not in ("previous", "hash")}
                entry = Entry.model_validate(shown)
                entries.append(entry)
                hashes.append(chain.head)
        if chain.torn is not None and not lines[-1]:  # a power cut leaves no end of line
            raise BrokenError(chain.num_lines, CHANGED)  # noqa: TRY301
    except BrokenError as broken:
        raise StorageError(f"line {broken.line} of {path}: {broken}. {WHAT_TO_DO}") from None
    except ValidationError:
        raise StorageError(f"line {chain.num_lines} of {path} is no charge. {WHAT_TO_DO}") from None
    if [entry.number for entry in entries] != list(range(1, len(entries) + 1)):
        raise StorageError(f"the charges in {path} are not numbered one after the other. {WHAT_TO_DO}")
    return chain, start, Ledger(tuple(entries), tuple(hashes))


WHAT_TO_DO = (
    "Without the right ledger nothing with privacy leaves. Put its newest copy back; what was spent cannot be known "
    "otherwise"
)


@contextmanager
def _opened(path: Path, flags: int, lock: int) -> Iterator[BinaryIO]:
    try:
        if flags & os.O_CREAT:
            path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, flags | os.O_CLOEXEC, 0o600), "rb") as file:
            if not wait_until(lambda: _is_locked(file, lock), _LOCK_S):
                raise StorageError(f"{path} is locked by another process since {_LOCK_S:.0f} s; end it")
            yield file
    except OSError as error:
        raise StorageError(
            f"{path} cannot be used: {error.strerror}; without its ledger nothing with privacy leaves this site. "
            "Make state_dir a folder that the trainer may write to, with some space."
        ) from error


def _is_locked(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
