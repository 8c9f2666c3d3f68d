"""One run of a grid, as its tables read it."""

from dataclasses import dataclass
from pathlib import Path

from server.storage.history import RoundRecord


@dataclass(frozen=True)
class Row:
    """One run: finished, incomplete or failed."""

    variant: str
    seed: int
    rounds: tuple[RoundRecord, ...]
    failure: str | None
    run_dir: Path
    lacking: str = ""
    """Why the run is incomplete; empty if it is not."""
