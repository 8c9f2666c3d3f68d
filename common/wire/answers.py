"""Answers: messages from a site to the server."""

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints

from common.config import OwnModel
from common.config.subgroups import MOST_ATTRIBUTES
from common.config.types import MOST_NAMES, Line, Name, ScoredSide
from common.heads.result import HeadResult
from common.masking.roster import Announcement
from common.metrics import NUM_BINS, Score
from common.metrics.calibration import CalibrationCounts
from common.metrics.replicates import Replicates
from common.metrics.subgroups import SubgroupCounts
from common.text import require_line
from common.weights import TensorSpec
from common.wire.fields import (
    LONGEST_NO,
    LONGEST_REASON,
    MOST_TENSORS,
    Counts,
    DeviceName,
    Digest,
    ImageSummary,
    Message,
    Preprocessing,
    RoundNumber,
    Seconds,
    TensorName,
    Tokens,
)
from common.wire.mask_steps import Envelopes, MaskedWord, MaskShares

Decision: TypeAlias = Literal["yes", "no", "undecided", "closed"]
"""`undecided`: no person at the site has answered yet. `closed`: the site takes plans again at another hour."""


class ApprovalAnswer(Message):
    """Whether a site takes a study now: the answer to an ApprovalPlan, and to an EnrolPlan where it is not yes."""

    kind: Literal["approval_answer"] = "approval_answer"
    decision: Decision
    reason: Annotated[str, Field(max_length=LONGEST_NO), AfterValidator(require_line)] = ""
    """The reason that a person gave with a no, or when a closed site opens again; else empty."""


class Enrolment(Message):
    """Description of the model that a site built and of its images."""

    kind: Literal["enrolment"] = "enrolment"
    ARRAYS: ClassVar[str | None] = "weights"
    layout: Annotated[dict[TensorName, TensorSpec], Field(max_length=MOST_TENSORS)]
    """Tensors that will travel."""
    weights_digest: Digest
    """Digest of the tensors that travel, as this site built them."""
    frozen_digest: Digest
    """Digest of the tensors that do not travel."""
    preprocessing: Preprocessing
    """Input size, mean, standard deviation, interpolation."""
    train_counts: Counts
    """Training images per class, in the study's order. With secure aggregation empty, as are the other counts: the
    server learns their sums over the sites from masked answers."""
    validation_counts: Counts
    """The same of the images that the study chooses by."""
    test_counts: Counts
    device: DeviceName
    """Device that the site computes on, e.g. "cpu" or "NVIDIA H200"."""
    images: ImageSummary | None = None
    """None from a site without images, and with secure aggregation."""
    withheld: bool = False
    """True if the site's policy withholds small classes, or all scores. A count of 0 may then stand for a few
    images, which are neither trained on nor scored. True does not mean that there are any."""
    weights: Annotated[Any, Field(exclude=True)]
    """Arrays: the first weights if the plan wants them, else empty."""


class RoundAnswer(Message):
    """The scores of the received weights and, from a training site, the change by training."""

    kind: Literal["answer"] = "answer"
    ARRAYS: ClassVar[str | None] = "delta"
    round: RoundNumber
    scores: dict[ScoredSide, Score]
    """By side that the plan asked for; empty under masks, where they are tables of `delta`."""
    score_bins: Annotated[int, Field(ge=2, le=NUM_BINS)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    """Under masks: bins that the site's policy rounds probabilities to; else None, and each score says it."""
    own: dict[OwnModel, Score] = Field(default_factory=dict)
    """Scores of the site's own models on its test images, from a training site at the end of a study that has them."""
    subgroups: Annotated[dict[Name, SubgroupCounts], Field(max_length=MOST_ATTRIBUTES)] = Field(
        default_factory=dict, exclude_if=lambda counts: not counts
    )
    """Counts of the test at the end by subgroup, for each attribute of the study that the site counts by."""
    calibration: CalibrationCounts | None = Field(default=None, exclude_if=lambda counts: counts is None)
    """Counts of the received weights on validation images, from a training site at the end of a study with
    `calibration` whose policy allows it; else None."""
    replicates: Replicates | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of the patients with test images, at the end of a study with `intervals`. None: the site's policy or too few
    patients keep them back."""
    num_examples: Annotated[int, Field(ge=0, le=2**50)]
    """Training images of the site, the weight of the delta. 0 from a site that only scores, and under masks, where the
    number is a table of `delta`."""
    num_steps: Annotated[int, Field(ge=0, le=2**50)]
    """0 under masks, because the steps of an epoch tell the images."""
    train_loss: float | None
    """Mean over the images of this round, None without training."""
    train_s: Seconds
    evaluate_s: Seconds
    epsilon: Annotated[float, Field(ge=0)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    """With privacy: what the study has cost this site's patients so far, at the study's delta; else None."""
    delta: Annotated[Any, Field(exclude=True)]
    """Arrays: trained minus received, empty from a site that only scores. Compact if the study has a `transport`;
    with masks, whole numbers modulo 2**64 of shape (2, ...): coarse and fine, times the images, and masked; and tables
    of masked whole numbers: scores as `scores/SIDE`, and the images trained on as `counts/images`
    (`common/masking/tables.py`)."""


OutlierCounts: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2, max_length=NUM_BINS)
]


class HeadAnswer(Message):
    """Sums over a site's training images, or scores on its validation or test images; nothing has a row per image, but
    for a head made of images' features that the study has travel and the site lets leave."""

    kind: Literal["head_answer"] = "head_answer"
    ARRAYS: ClassVar[str | None] = "arrays"
    round: RoundNumber
    step: Literal["statistics", "gradients", "coefficients", "travel", "score", "outliers"]
    train_counts: Counts
    """Training images by class behind the arrays; all 0 where there are none. Under masks empty, and a table."""
    results: tuple[HeadResult, ...] = ()
    outliers: OutlierCounts | None = Field(default=None, exclude_if=lambda counts: counts is None)
    """Validation images by their outlier score, in as many bins as the policy has for scores. None: not asked for, or
    the policy keeps them back, or they are a masked table."""
    score_bins: Annotated[int, Field(ge=2, le=NUM_BINS)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    """Under masks, of a score: bins that the site's policy rounds probabilities to."""
    seconds: Seconds
    epsilon: Annotated[float, Field(ge=0)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    """With privacy, where sums have noise: what the study has cost this site's patients so far, at its delta."""
    arrays: Annotated[Any, Field(exclude=True)]
    """Arrays: `statistics/VIEW/sums`, `squares`, `moments`, and with privacy `counts`; `losses/NAME`
    and `gradients/NAME`; `coefficients/NAME/weights`, `bias`; `fitted/KIND/NAME/...` of a head that travels. Empty for
    a score. With masks, each sum as whole numbers modulo 2**64 of shape (2, ...), coarse and fine; and tables of masked
    whole numbers: `counts/train`, `scores/TITLE`, `counts/unscored`, `counts/outliers` (`common/masking/tables.py`)."""


ErrorKind: TypeAlias = Literal[
    "data",
    "study",
    "weights",
    "policy",
    "memory",
    "device",
    "storage",
    "message",
    "unreachable",
    "internal",
    "no_base",
]
"""`no_base`: the site does not hold the weights that a plan's change is of, and needs whole ones."""


class Failure(Message):
    """A plan that the site could not carry out. Nothing in it describes the site's images."""

    kind: Literal["failure"] = "failure"
    error: ErrorKind
    case: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{0,64}$")]
    """Number of the case, under which the site's own log has the details; empty for a refusal by policy."""
    advice: Line
    reason: Annotated[str, Field(max_length=LONGEST_REASON), AfterValidator(require_line)] = ""
    """Why the site's policy refuses the plan: rules by name and the study's own values. Else empty."""

    @property
    def message(self) -> str:
        """Advice and reason as one sentence."""
        return f"{self.advice}: {self.reason}" if self.reason else self.advice


class OverlapAnswer(Message):
    """The images of a site as keyed hashes, sorted, so that the order of the images does not leave the site.

    Each kind has as many hashes as the site enrolled images. Equal images share one hash, and fillers
    take the other places. Both are empty in the answer to a plan with `shared` hashes.
    """

    kind: Literal["overlap_answer"] = "overlap_answer"
    check: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    """Equal at all sites with the same secret; it has no other use."""
    same: Tokens
    """Hashes of the pixels that an image shows."""
    similar: Tokens
    """Hashes of an image's perceptual hash."""


class MaskAnswer(Message):
    """What a site adds to a step of secure aggregation: one of the four, as the step asks."""

    kind: Literal["mask_answer"] = "mask_answer"
    round: RoundNumber
    keys: Announcement | None = None
    envelopes: Envelopes = Field(default_factory=dict)
    """Shares of this site's secrets, each sealed for the site named."""
    seed_shares: MaskShares = Field(default_factory=dict)
    """Shares of the seeds of sites whose answers were added up."""
    key_shares: MaskShares = Field(default_factory=dict)
    """Shares of the mask keys of sites that dropped out."""
    census: Annotated[tuple[MaskedWord, ...], Field(max_length=3 * MOST_NAMES)] = Field(
        default=(), exclude_if=lambda words: not words
    )
    """Images by class for training, validation and test, one after the other: masked whole numbers modulo 2**64."""


Answer: TypeAlias = (
    ApprovalAnswer | Enrolment | RoundAnswer | HeadAnswer | OverlapAnswer | MaskAnswer | Failure
)
