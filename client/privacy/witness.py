"""The witness of the ledger: its last charge, in a file outside `state_dir`.

A backup that puts `state_dir` back as a whole takes ledger and audit log back to the same moment, and both fit. The
witness lies on another disk or share, so it still knows the last charge.
"""

from pathlib import Path

from pydantic import Field

from common.files import read_json, write_json
from common.settings import Frozen


class LastCharge(Frozen):
    """The last charge that the witness saw."""

    number: int = Field(ge=1)
    line_hash: str


def last(path: Path | None) -> tuple[int, str] | None:
    """Number and hash of the last charge; None without a witness or before the first charge. Raises StorageError."""
    found = None if path is None else read_json(path, LastCharge)
    return None if found is None else (found.number, found.line_hash)


def keep(path: Path | None, number: int, line_hash: str) -> None:
    """Note a charge that is in the ledger. Raises StorageError."""
    if path is None:
        return
    before = last(path)
    if before is None or before[0] < number:  # another trainer of this site may have charged since
        write_json(path, LastCharge(number=number, line_hash=line_hash))
