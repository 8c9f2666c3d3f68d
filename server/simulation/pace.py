"""Pace of a grid: one line for each run that is over, and the time that the others still take."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common import log
from common.config import StudyConfig
from common.console.spans import format_span
from common.errors import StorageError
from server.report.text import counted
from server.simulation.jobs import Ended
from server.storage.history import read_rounds


@dataclass
class Pace:
    """How long the rounds took so far, and so what is left."""

    folder: Path
    waiting: Mapping[str, StudyConfig]
    """What is not over; the caller takes out what is."""
    jobs: int
    seconds: float = 0.0
    num_rounds: int = 0
    num_ended: int = 0

    def add(self, study: StudyConfig, ended: Ended) -> None:
        """Count a run that is over, and log what is left."""
        self.seconds, self.num_rounds = self.seconds + ended.seconds, self.num_rounds + study.rounds
        self.num_ended += 1
        failure, num_left = ended.outcome.failure, len(self.waiting)
        if self.jobs > 1:
            how = "finished" if failure is None else "failed"
            of = f"{self.num_ended} of {counted(self.num_ended + num_left, 'run')} ended"
            log.event(
                f"{study.name} {how} after {format_span(ended.seconds)} ({of}){f': {failure}' if failure else ''}",
                level=logging.INFO if failure is None else logging.WARNING,
            )
        left = sum(study.rounds for study in self.waiting.values())
        left -= sum(self._rounds_done(self.waiting[name]) for name in ended.under_way)
        if left and self.num_rounds and failure is None:
            at_once = min(self.jobs, num_left)
            log.event(_time_left(self.seconds / self.num_rounds * left / at_once, num_left, left, at_once))

    def _rounds_done(self, study: StudyConfig) -> int:
        try:
            return min(study.rounds, len(read_rounds(self.folder / study.name)))
        except StorageError:  # of an earlier run, which is being set aside: an estimate must not end a grid
            return 0


def _time_left(seconds: float, num_studies: int, num_rounds: int, at_once: int) -> str:
    side = f", {at_once} at a time" if at_once > 1 else ""
    return (
        f"about {format_span(seconds)} left for {counted(num_studies, 'run')} of {counted(num_rounds, 'round')}{side}, "
        "as long as the rounds so far"
    )
