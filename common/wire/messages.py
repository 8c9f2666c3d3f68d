"""Messages between the server and a site: plans to the site, answers from it.

A message is one validated object: a kind, named fields and named arrays. `common.wire.codec` turns it into
bytes and into Flower's records.
"""

import re
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from common.config import OwnModel, Share, StudyConfig
from common.config.subgroups import MOST_ATTRIBUTES
from common.config.types import MOST_NAMES, Line, MaskPhase, Name, ScoredSide
from common.heads.result import HeadResult
from common.heads.view import below
from common.masking.roster import Announcement
from common.masking.tables import MOST_IMAGES
from common.metrics import NUM_BINS, Score
from common.metrics.calibration import CalibrationCounts
from common.metrics.replicates import Replicates
from common.metrics.subgroups import SubgroupCounts
from common.settings import Frozen
from common.text import require_line
from common.weights import Arrays, TensorSpec
from common.wire.head_steps import HeadStep
from common.wire.mask_steps import Envelopes, MaskedWord, MaskShares, MaskStep

TRAINER_SERVICE, TRAINER_METHOD = "consilium.Trainer", "Answer"
"""gRPC method on the trainer's socket: a stream of chunks in, a stream of chunks out."""

CHECK_HEADER = "consilium-check"
"""gRPC header of a call that only checks whether the connection works."""

LONGEST_REASON = 2000
"""Most characters of the reason of a failure."""

LONGEST_NOTICE = 2000
"""Most characters of a plan's notice for a site's log."""

LONGEST_NO = 300
"""Most characters of the reason that a person at a site gives with a no."""

LONGEST_HOLD_S = 60.0
"""Most seconds for which a site holds back an answer that waits for a person."""

MOST_TOKENS = 2**20
"""Most images of a site that can be compared with others'."""

Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""A keyed hash of what one image shows: 128 bits as hexadecimal digits (`client/governance/image_hashes.py`)."""
Tokens = Annotated[tuple[Token, ...], Field(max_length=MOST_TOKENS)]


PlanId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
"""The server's number of a plan."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-z]{0,64}$")]
"""A hash of tensors, in hexadecimal digits."""

ScoredSides = Annotated[tuple[ScoredSide, ...], Field(max_length=2)]
Count = Annotated[int, Field(ge=0, le=MOST_IMAGES)]
Counts = Annotated[tuple[Count, ...], Field(max_length=MOST_NAMES)]
"""Images by class."""

RoundNumber = Annotated[int, Field(ge=0, le=10**9)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]

MOST_TENSORS = 10**5
"""Most tensors of a model."""
TensorName = Annotated[Line, StringConstraints(min_length=1, max_length=300)]

DeviceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.,:/()+-]{0,99}$")]
"""A device's name: letters, digits, spaces and `_ . , : / ( ) + -`, at most 100 of them."""

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Preprocessing = Annotated[
    dict[Word, Word | int | Number | bool | Annotated[tuple[int | Number, ...], Field(max_length=16)] | None],
    Field(max_length=32),
]
"""Settings by name: words, numbers, and short lists of numbers."""

Extent = Annotated[int, Field(ge=1, le=2**20)]
"""Pixels of a side of an image."""


class Sizes(Frozen):
    """The smallest and the largest side, each way, of the images as they are stored."""

    width: tuple[Extent, Extent]
    height: tuple[Extent, Extent]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.width[0] > self.width[1] or self.height[0] > self.height[1]:
            raise ValueError("the smallest side is larger than the largest one")
        return self


class ImageSummary(Frozen):
    """Sizes and colours of a site's images, those of all sides together."""

    sizes: Sizes | None
    """None: too few patients for the site's policy to give the ends of the range."""
    mean: tuple[Share, Share, Share]
    """Red, green, blue in [0, 1], over all pixels."""
    std: tuple[Share, Share, Share]


class Message(Frozen):
    """Base of every message. `ARRAYS` names the field, if any, that holds tensors."""

    # A loss that is not finite must arrive, so that admission can name the site that sent it.
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=True)
    ARRAYS: ClassVar[str | None] = None

    plan_id: PlanId
    """Set by the server; an answer carries the id of the plan it answers."""
    site: Name
    """The site this plan is for, or this answer is from, as the server enrolled it."""


# --- plans: server to site -------------------------------------------------------------------


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

Plan: TypeAlias = ApprovalPlan | EnrolPlan | RoundPlan | HeadPlan | OverlapPlan | MaskPlan


# --- answers: site to server -----------------------------------------------------------------


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


def device_name(name: str) -> str:
    """A driver's name of a device in the characters that an enrolment takes."""
    plain = re.sub(r"[^A-Za-z0-9 _.,:/()+-]+", " ", name).strip(" _.,:/()+-")[:100].strip()
    return plain or "unnamed device"


def arrays_of(message: Plan | Answer) -> Arrays:
    """The tensors of a message, empty for a kind without any."""
    arrays: Arrays = getattr(message, message.ARRAYS) if message.ARRAYS else {}
    return arrays


def weights_of(plan: Plan) -> Arrays:
    """The weights that a plan brings along, empty without any."""
    if isinstance(plan, RoundPlan):
        return plan.network
    arrays = arrays_of(plan)
    if isinstance(plan, HeadPlan):
        return {name.removeprefix(_WEIGHTS): arrays[name] for name in arrays if name.startswith(_WEIGHTS)}
    return arrays


_WEIGHTS = "weights/"
"""Start of the names of a head plan's weights among its arrays."""
