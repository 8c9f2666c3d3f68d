"""The state of a study after a round: everything the next round, a checkpoint or a report needs.

A round turns one state into the next and edits nothing, so a checkpoint is a state on disk
and resuming is starting from another state.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from common import wire
from common.config import OwnModel
from common.config.types import ScoredSide
from common.metrics import Score
from common.metrics.calibration import CalibrationCounts
from common.metrics.replicates import Replicates
from common.metrics.subgroups import SubgroupCounts
from common.settings import Frozen
from common.weights import Array, Layout


@dataclass(frozen=True)
class OptimizerState:
    """Step of a server optimizer and its named arrays by slot: {"momentum": {...}}."""

    step: int = 0
    slots: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteRound:
    """What one site did in one round."""

    site: str
    outcome: Literal["ok", "refused", "failed", "missing", "set_aside", "absent"]
    """`refused`: the update did not pass admission. `failed`: the site answered with a failure, or could not be
    reached. `set_aside`: refused too often in a row, so it got no plan. `absent`: the study names the site, but it
    did not enrol, so it got no plan."""
    reason: str = ""
    num_examples: int = 0
    """Images trained on; 0 where the update came under masks."""
    num_steps: int = 0
    train_loss: float | None = None
    epsilon: float | None = None
    """With privacy: of the study so far, for this site's patients, as the site counts it."""
    delta_norm: float | None = None
    train_s: float = 0.0
    evaluate_s: float = 0.0
    answered_after_s: float = 0.0
    """From sending the plan to having the answer."""
    mib_down: float = 0.0
    """Sent to the site, tensors only."""
    mib_up: float = 0.0
    masked: bool = False
    """Its update came under masks, so its images and steps are not known."""

    @property
    def trained(self) -> bool:
        """Whether its update was admitted."""
        return self.outcome == "ok" and (self.masked or self.num_examples > 0)


@dataclass(frozen=True)
class RefusalStreak:
    """Answers of one site that were refused, one after the other."""

    in_a_row: int
    round: int
    """Round of the last refusal."""
    reason: str


@dataclass(frozen=True)
class Absence:
    """A site's rounds without an answer that counts, one after the other."""

    round: int
    """First of these rounds."""
    since: str
    """End of that round, as text for a person."""


@dataclass(frozen=True)
class Best:
    """The weights that scored best so far."""

    round: int
    """Round after which these weights stood."""
    value: float
    """Value of the study's `selection.metric`."""
    num_worse_since: int = 0
    """Scored rounds after it, none of them better."""


@dataclass(frozen=True)
class ChosenWeights:
    """The weights that the study has chosen, which its test figures are of."""

    round: int
    """Round after which they stood."""
    weights: Mapping[str, Array]


@dataclass(frozen=True)
class Change:
    """The change of the weights by the last round, as sites get it that hold the weights before it."""

    arrays: Mapping[str, Array]
    """In compact form."""
    base: str
    """Digest of the weights before it."""
    result: str
    """Digest of the weights after it."""


@dataclass(frozen=True)
class RoundState:
    """The study after `round` rounds; round 0 is the first weights."""

    round: int
    weights: Mapping[str, Array]
    layout: Layout
    preprocessing: Mapping[str, Any]
    optimizer: OptimizerState = OptimizerState()
    counted: Mapping[str, int] = field(default_factory=dict)
    """SCAFFOLD: last round of each site whose update counted, by site."""
    sites: tuple[SiteRound, ...] = ()
    """In the order of site names; empty in round 0."""
    scores: Mapping[str, Score] = field(default_factory=dict)
    """By site: score of the weights that this round *started* from, on the site's validation images."""
    test_scores: Mapping[str, Score] = field(default_factory=dict)
    """The same on test images: empty before the closing evaluation, unless the study's curves are of test images. In
    the closing evaluation they are of the chosen weights, see `chosen`."""
    own_scores: Mapping[OwnModel, Mapping[str, Score]] = field(default_factory=dict)
    """In the closing evaluation: by model of a site's own and by site, its score on the site's test images."""
    subgroups: Mapping[str, Mapping[str, SubgroupCounts]] = field(default_factory=dict)
    """In the closing evaluation: by site and attribute, the test counted by subgroup."""
    calibration: Mapping[str, CalibrationCounts] = field(default_factory=dict)
    """In the closing evaluation: by training site, counts of the chosen weights on its validation images."""
    replicates: Mapping[str, Replicates] = field(default_factory=dict)
    """In the closing evaluation: by site, sums over its test patients, from which the figures get intervals."""
    chosen: ChosenWeights | None = None
    """The chosen weights. None before the closing evaluation."""
    seconds: float = 0.0
    refusals: Mapping[str, RefusalStreak] = field(default_factory=dict)
    """By site, since its last admitted answer; a site without any is not named."""
    absences: Mapping[str, Absence] = field(default_factory=dict)
    """By site without an answer that counts in the last round it was expected in."""
    answer_times: tuple[float, ...] = ()
    """Seconds in which sites answered in the last rounds, oldest first."""
    best: Best | None = None
    """None if the study does not select, or nothing was scored yet."""
    change: Change | None = None
    """None without any: the study sends whole weights, or the last round was in another process."""
    attempts: int = 1
    """Number of times this round's plans were sent until it had a quorum."""
    closing: bool = False
    """The evaluation after the last round: `round` is one more than that of the weights."""


class Totals(Frozen):
    """The census under masks: images by class of all sites of its sum together."""

    study: str
    """Fingerprint."""
    sites: tuple[str, ...]
    """Sites of the sum, in the order of names."""
    train_counts: tuple[int, ...]
    validation_counts: tuple[int, ...]
    test_counts: tuple[int, ...]


@dataclass(frozen=True)
class Cohort:
    """The sites that take part, as they described themselves, and the weights to start from."""

    enrolments: Mapping[str, wire.Enrolment]
    """By site, in the order of names; `weights` are emptied. With secure aggregation they have no counts."""
    weights: Mapping[str, Array]
    absent: Mapping[str, str] = field(default_factory=dict)
    """Sites that the study names and that do not take part: the reason, by site in the order of the study."""
    totals: Totals | None = None
    """With secure aggregation: the sums of the sites' counts, in place of each site's."""

    @property
    def reference(self) -> wire.Enrolment:
        """Any site's description of the model: they are all the same."""
        return next(iter(self.enrolments.values()))

    def counts(self, site: str, side: ScoredSide) -> tuple[int, ...]:
        """Images by class that the site enrolled with on one side."""
        enrolment = self.enrolments[site]
        return enrolment.validation_counts if side == "validation" else enrolment.test_counts

    def num_scored(self, site: str, sides: Iterable[ScoredSide]) -> int:
        """Images that the site enrolled with on these sides."""
        return sum(sum(self.counts(site, side)) for side in sides)

    def train_count(self, site: str) -> int:
        """Training images that the site enrolled with."""
        return sum(self.enrolments[site].train_counts)


class SiteApproval(Frozen):
    """What the people at one site have answered before round 1."""

    answer: wire.Decision
    since: datetime
    """When they were asked, or answered."""
    reason: str = ""


class Approvals(Frozen):
    """Answers of people that a study waits for before round 1."""

    since: datetime
    until: datetime | None
    """When the study stops waiting; None: never."""
    sites: dict[str, SiteApproval]
    """Sites that did not agree at once."""


class Asked(Frozen):
    """Outcome of one site in the current round."""

    outcome: Literal["awaited", "ok", "refused", "failed", "missing", "set_aside", "absent"]
    after_s: float | None = None
    """Seconds until it answered."""
    reason: str = ""


class Progress(Frozen):
    """Progress of the current round."""

    round: int
    rounds: int
    closing: bool
    attempt: int
    since: datetime
    """Time at which its plans were sent."""
    deadline_s: float
    """Seconds from `since` until the wait ends."""
    sites: dict[str, Asked]
