"""The outcome of a study as the report tells it: what is on record, and what follows from it.

Every sentence of a report takes its facts from here, not from what the study had planned.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.calibration import Calibration
from common.config import StudyConfig
from common.heads.outliers import OutlierRecord
from server.enrolment.census import Census
from server.enrolment.overlap import Overlap
from server.heads.record import HeadTable
from server.rounds import scores
from server.state import SiteRound
from server.storage import history
from server.storage.history import RoundRecord, ScoredModel
from server.storage.intervals import Intervals
from server.storage.status import Stage

NOT_ON_RECORD = "the reason is not on record"


@dataclass(frozen=True)
class Ending:
    """How a study ended, for its status and its report."""

    stage: Stage
    reason: str


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
    intervals: Intervals | None = None
    """None: not on record."""
    calibration: Calibration | None = None
    """None: not on record, or the study does not ask for one."""
    outliers: OutlierRecord | None = None
    """None as `calibration`."""
    ending: Ending | None = None
    """None: not on record, or the study has not ended."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Sites that did not enrol at the study's last start, each with the reason."""
    resumed_after: Sequence[int] = ()
    """Rounds after which the study went on from a checkpoint."""
    start_from: str | None = None
    """Name of the operator's file with the first weights; None: a site built them."""

    @property
    def final(self) -> ScoredModel | None:
        """The test of the chosen model; before it, or without test images, the last scores on record."""
        models = [
            model for record in self.rounds for model in (record.validation, record.test) if model is not None
        ]
        tested = [model for model in models if model.side == "test"]
        return (
            tested[-1]
            if tested and (self.is_closed or tested[-1] is models[-1])
            else next(reversed(models), None)
        )

    @property
    def final_record(self) -> RoundRecord | None:
        """The record that has `final`."""
        final = self.final
        return next(
            (r for r in reversed(self.rounds) if final is not None and final in (r.validation, r.test)), None
        )

    @property
    def curves(self) -> tuple[ScoredModel, ...]:
        """Scores of the models over the rounds, on the images that the study's curves are of."""
        return history.curves(self.rounds, self.study.curves_on)

    @property
    def is_closed(self) -> bool:
        """True if the closing evaluation is on record: all rounds that were to be run are done."""
        return any(record.closing for record in self.rounds)

    @property
    def num_rounds(self) -> int:
        """Rounds of training on record."""
        return sum(not record.closing for record in self.rounds)

    def rows_of(self, site: str) -> list[SiteRound]:
        """The site's rows, round by round."""
        return [row for record in self.rounds for row in record.sites if row.site == site]

    def num_trained(self, site: str) -> int:
        """Rounds with an admitted update of the site."""
        return sum(row.trained for row in self.rows_of(site))

    @property
    def trained(self) -> list[str]:
        """Sites with an admitted update, in the order of the study."""
        return [site for site in self.study.sites.train if self.num_trained(site)]

    @property
    def never_there(self) -> dict[str, str]:
        """Sites that the study names and that took part in no round on record, each with the reason."""
        found = {}
        for site in self.study.sites.all:
            rows = self.rows_of(site)
            if any(row.outcome != "absent" for row in rows):
                continue
            known = rows[-1].reason if rows else self.absent.get(site)
            if known is None and site in self.study.sites.evaluate and not self.is_closed:
                continue  # it may have test images alone, which are scored at the end
            if known is not None or self.rounds:
                found[site] = known or NOT_ON_RECORD
        return found

    @property
    def unscored(self) -> dict[str, str]:
        """`evaluate` sites without a score of the final model, each with the reason; empty before it is scored."""
        closing = next((record for record in self.rounds if record.closing), None)
        if closing is None:
            return {}
        num_images = Counter[str]()
        for model in filter(None, (closing.validation, closing.test)):
            num_images.update({site: scored.figures.num_images for site, scored in model.sites.items()})
        lacking = scores.unscored(self.study, closing.sites, num_images)
        never = self.never_there
        return {site: never.get(site, reason) for site, reason in lacking.items()}

    @property
    def is_incomplete(self) -> bool:
        """True if all rounds are done, and the study misses the score of an `evaluate` site."""
        return bool(self.unscored) and self.study.sites.evaluate_missing == "incomplete"
