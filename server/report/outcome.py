"""The outcome of a study as the report tells it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import StudyConfig
from server.enrolment.census import Census
from server.enrolment.overlap import Overlap
from server.heads.record import HeadTable
from server.storage.history import RoundRecord


@dataclass(frozen=True)
class Outcome:
    """What the report is about."""

    study: StudyConfig
    rounds: Sequence[RoundRecord]
    preprocessing: Mapping[str, Any] | None
    synthetic: bool
    census: Census | None = None
    """None: not on record."""
    overlap: Overlap | None = None
    """None: the sites' images were not compared."""
    heads: HeadTable | None = None

    @property
    def final(self) -> RoundRecord | None:
        """The record with the scores of the last model that was scored."""
        return next((record for record in reversed(self.rounds) if record.pooled is not None), None)
