"""The outlier score of a study: made of the sums of its discriminant, its limit from counts of validation images.

The sums are those that the head was fitted from, so the sites are asked for nothing twice. Then the training sites get
the detector once, and count their validation images by score. A site whose policy keeps such counts back is named.

C classes, D features of the view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import log, wire
from common.calibration.conformal import ScoreCounts
from common.config import StudyConfig
from common.errors import UpdateRejected
from common.heads import View, outliers, under
from common.heads.outliers import OutlierDetector, OutlierRecord
from common.masking.tables import OUTLIERS
from common.weights import digest
from common.wire import head_steps
from server.heads import solvers
from server.heads.calls import HeadCalls
from server.heads.masked import MaskedSums
from server.heads.solvers import Statistics
from server.state import RoundState


@dataclass(frozen=True)
class Outliers:
    """The outlier score of one set of weights."""

    detector: OutlierDetector
    num_train: float
    """Training images behind it."""
    counts: dict[str, ScoreCounts]
    """By training site, or under masks by `ALL`: its validation images by score."""
    together: tuple[str, ...] = ()
    """Under masks: sites whose counts are in the sum."""


def detector(sums: Statistics, view: View, shrinkage: float) -> OutlierDetector:
    """The detector from sums on a view. Raises LinAlgError if no feature varies within a class."""
    within_DD = solvers.within_classes(sums)
    lower_DD = np.linalg.cholesky(solvers.shrunk(within_DD, shrinkage))
    whitening_DD = np.linalg.inv(lower_DD).T
    # Mean of the training images' squared distances to their own class, weighted as the covariance is.
    typical = float(np.sqrt(np.einsum("de,df,ef->", within_DD, whitening_DD, whitening_DD, optimize=True)))
    if not typical > 0:
        raise np.linalg.LinAlgError("no feature varies within a class")
    whitening_DD /= typical
    return OutlierDetector(view, whitening_DD, sums.means_CD[sums.present_C] @ whitening_DD)


def counted(calls: HeadCalls, sites: Sequence[str], found: OutlierDetector) -> dict[str, ScoreCounts]:
    """Validation images by score of every training site that answers with some."""

    def admit(site: str, answer: wire.HeadAnswer) -> None:
        expected = sum(calls.cohort.counts(site, "validation"))
        if answer.outliers is not None and sum(answer.outliers) != expected:
            raise UpdateRejected(
                f"its outlier scores are of {sum(answer.outliers)} validation images, expected {expected} as enrolled"
            )

    arrays = under("detector", found.arrays())
    answers = calls.ask(sites, head_steps.OutliersStep(), arrays, admit)
    return {
        site: ScoreCounts(images_B=answer.outliers)
        for site, answer in answers.items()
        if answer.outliers is not None and any(answer.outliers)
    }


def counted_together(
    masks: MaskedSums, sites: Sequence[str], found: OutlierDetector
) -> tuple[tuple[str, ...], dict[str, ScoreCounts]]:
    """The sites of the masked sum, and their validation images by score together, under `ALL`. A site whose policy
    keeps its counts back adds zeros, and nothing says which one. Raises what `MaskedSums.outliers` raises.
    """
    total = masks.outliers(sites, under("detector", found.arrays()))
    counts = ScoreCounts(images_B=total.counts(OUTLIERS))
    return total.sites, {outliers.ALL: counts} if counts.num_images else {}


def record_of(found: Outliers, study: StudyConfig, state: RoundState) -> OutlierRecord:
    """What is kept beside the arrays, for the weights of this state."""
    settings = study.out_of_distribution
    assert settings is not None
    limit, why_none = outliers.limit_of(found.counts, settings.flagged, settings.least_images)
    return OutlierRecord(
        weights_sha256=digest(state.weights),
        after_round=state.round - 1,
        shrinkage=settings.shrinkage,
        num_train=found.num_train,
        flagged=settings.flagged,
        limit=limit,
        why_none=why_none,
        sites=found.counts,
        without=tuple(site for site in study.sites.train if site not in (found.together or found.counts)),
        together=found.together,
    )


def read(run_dir: Path, study: StudyConfig) -> OutlierRecord | None:
    """The record of a run's outlier score, or None. Raises StorageError, SiteDataError for another file."""
    found = outliers.load(run_dir, len(study.classes))
    return None if found is None else found[1]


def keep(run_dir: Path, found: Outliers | None, study: StudyConfig, state: RoundState) -> None:
    """Write the file of a study with `out_of_distribution`, or take an earlier one away. Raises StorageError."""
    if found is None:
        (run_dir / outliers.FILE).unlink(missing_ok=True)
        return
    record = record_of(found, study, state)
    outliers.save(run_dir, found.detector, record)
    log.event(record.describe())
