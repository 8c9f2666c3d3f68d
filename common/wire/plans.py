"""Plans: messages from the server to a site."""

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field

from common.config import StudyConfig
from common.config.types import MaskPhase, ScoredSide
from common.heads.view import below
from common.text import require_line
from common.weights import Arrays
from common.wire.fields import (
    LONGEST_HOLD_S,
    LONGEST_NOTICE,
    Counts,
    Digest,
    Message,
    RoundNumber,
    ScoredSides,
    Tokens,
)
from common.wire.head_steps import HeadStep
from common.wire.mask_steps import Envelopes, MaskStep


class ApprovalPlan(Message):
    """Say whether this site takes the study now. Nothing is built and no image is read."""

    kind: Literal["approval"] = "approval"
    study: StudyConfig
    first_round: Annotated[int, Field(ge=1)] = 1
    """The round that would come next, as in an EnrolPlan."""
    hold_s: Annotated[float, Field(ge=0, le=LONGEST_HOLD_S)] = 0.0
    """Seconds for which the site may hold its answer back while no person there has decided."""


class EnrolPlan(Message):
    """Build the model and the data set, and describe both."""

    kind: Literal["enrol"] = "enrol"
    study: StudyConfig
    want_weights: bool
    """True for the one site that sends the first weights with its answer."""
    first_round: Annotated[RoundNumber, Field(ge=1)] = 1
    """The round that comes next; 1 starts the study over, more resumes it."""


class RoundPlan(Message):
    """Score the weights of this plan on the named sides of the split and, if `train`, train from them."""

    kind: Literal["round"] = "round"
    ARRAYS: ClassVar[str | None] = "weights"
    study: StudyConfig
    round: Annotated[RoundNumber, Field(ge=1)]
    """The weights are those after the round before."""
    train: bool
    score: ScoredSides = ("validation",)
    """Sides whose images are scored; a site without images on a side answers with a score of none."""
    best: RoundNumber | None = None
    """Round after which the best weights so far stood: the site keeps its own layers of that round."""
    class_counts: Counts | None = None
    """Training images by class of all training sites together, if `local` weighs by them; else None."""
    control: RoundNumber = 0
    """SCAFFOLD: the last round of this site that counted, whose control variate it goes on from. 0: none."""
    notice: Annotated[str, Field(max_length=LONGEST_NOTICE), AfterValidator(require_line)] | None = None
    """Why the server refused this site's last answer, for the site's own log: one line of it."""
    base: Digest | None = Field(default=None, exclude_if=lambda base: base is None)
    """Digest of the weights of the round before, if `weights` are the change since then; None: they are whole."""
    result: Digest | None = Field(default=None, exclude_if=lambda result: result is None)
    """Digest of the weights after that change."""
    envelopes: Envelopes | None = Field(default=None, exclude_if=lambda envelopes: envelopes is None)
    """Secure aggregation: shares that other sites sealed for this one, by site. None: no masks."""
    weights: Annotated[Any, Field(exclude=True)]
    """Arrays: every tensor of the study's layout and, as `control/...`, SCAFFOLD's control variate of the server;
    or the compact form of a change (`common/wire/compact.py`)."""

    @property
    def phase(self) -> MaskPhase:
        """Which masks the answer of a training site has in a study with secure aggregation."""
        return phase_of(self.train, self.score)

    @property
    def network(self) -> Arrays:
        """The tensors of the study's layout."""
        return {name: array for name, array in self.weights.items() if not name.startswith(f"{CONTROL}/")}

    @property
    def control_variate(self) -> Arrays:
        """The server's control variate, by tensor; empty without one."""
        return below(CONTROL, self.weights)


def phase_of(train: bool, score: tuple[ScoredSide, ...]) -> MaskPhase:
    """Phase of a round that trains or only scores these sides."""
    if train:
        return "training"
    return "test" if score == ("test",) else "scoring"


def asks_for_replicates(plan: RoundPlan) -> bool:
    """Whether the answer has sums over test patients: that of the final test, in a study that asks for them."""
    return plan.study.asks_for_intervals and "test" in plan.score and not plan.train


class OverlapPlan(Message):
    """Send the images as keyed hashes, which only sites with the same secret can compute."""

    kind: Literal["overlap"] = "overlap"
    study: StudyConfig
    shared: Tokens = ()
    """Hashes of this site that a training site sent, too. Its data manager can find these images. A plan with
    such hashes is answered without hashes."""


class HeadPlan(Message):
    """One step towards the study's classical heads, on features of the weights after `round`."""

    kind: Literal["heads"] = "heads"
    ARRAYS: ClassVar[str | None] = "arrays"
    study: StudyConfig
    round: RoundNumber
    weights_digest: Digest
    """Digest of the weights. A site that keeps their features needs no weights."""
    step: HeadStep
    envelopes: Envelopes | None = Field(default=None, exclude_if=lambda envelopes: envelopes is None)
    """Secure aggregation: shares that other sites sealed for this one, by site. None: no masks."""
    mask_number: RoundNumber = Field(default=0, exclude_if=lambda number: not number)
    """Secure aggregation: number of the masked sum that the answer is a part of, from 1. 0: no masks."""
    arrays: Annotated[Any, Field(exclude=True)]
    """Arrays: `weights/...` in the first step a site gets, and what the step names."""

    @property
    def phase(self) -> MaskPhase:
        """Which masks the answer has in a study with secure aggregation."""
        return "heads"

    @property
    def network(self) -> Arrays:
        """The weights, if they came along."""
        return below(WEIGHTS, self.arrays)

    @property
    def inputs(self) -> Arrays:
        """What the step is computed with, beside the weights."""
        return {name: array for name, array in self.arrays.items() if not name.startswith(f"{WEIGHTS}/")}


class MaskPlan(Message):
    """One step of secure aggregation before or after the masked answer to a round, or to a step towards heads."""

    kind: Literal["mask"] = "mask"
    study: StudyConfig
    round: Annotated[RoundNumber, Field(ge=1)]
    """In the phase `heads` the number of the masked sum."""
    phase: MaskPhase = "training"
    """What the sum is for: see `RoundPlan.phase`."""
    step: MaskStep


CONTROL = "control"
"""Folder, within the arrays of a round, of the server's control variate."""

WEIGHTS = "weights"
"""Folder, within the arrays of a step towards heads, of the network's weights."""

Plan: TypeAlias = ApprovalPlan | EnrolPlan | RoundPlan | HeadPlan | OverlapPlan | MaskPlan
