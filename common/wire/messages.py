"""What the server and a site say to each other, and how it is written down.

A message is one validated object: a kind, named fields and named arrays. It travels in two
ways, as Flower records between server and gateway and as safetensors bytes between gateway
and trainer; this is the only file that spells a key of either. The gateway turns one form
into the other without reading it, so it needs neither torch nor the study's meaning.

Nothing that can run is ever decoded: JSON and numeric arrays only.
"""

from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from common.config import Share, StudyConfig
from common.heads.result import HeadResult
from common.metrics import Score
from common.settings import Frozen
from common.weights import Arrays, TensorSpec
from common.wire.head_steps import HeadStep

TRAINER_SERVICE, TRAINER_METHOD = "consilium.Trainer", "Answer"
"""gRPC method on the trainer's socket: a stream of chunks in, a stream of chunks out."""

CHECK_HEADER = "consilium-check"
"""Marks a call that is made to find out whether the connection works."""

LONGEST_NOTICE = 2000
"""Characters of what a plan may say to a site's log."""

MOST_TOKENS = 2**20
"""Images of a site that can be compared with others'."""

Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""A keyed hash of what one image shows: 128 bits as hexadecimal digits (`client/governance/image_hashes.py`)."""
Tokens = Annotated[tuple[Token, ...], Field(max_length=MOST_TOKENS)]


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
    """What a site's images look like from afar, training and test images together."""

    sizes: Sizes | None
    """None: the site's policy counts too few patients to tell the ends of the range."""
    mean: tuple[Share, Share, Share]
    """Red, green, blue in [0, 1], over all pixels."""
    std: tuple[Share, Share, Share]


class Message(Frozen):
    """Base of every message. `ARRAYS` names the field, if any, that holds tensors."""

    # A loss that is not finite must arrive, so that admission can name the site that sent it.
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=True)
    ARRAYS: ClassVar[str | None] = None

    plan_id: Annotated[str, Field(min_length=1, max_length=64)]
    """Set by the server; an answer carries the id of the plan it answers."""
    site: str
    """The site this plan is for, or this answer is from, as the server enrolled it."""


# --- plans: server to site -------------------------------------------------------------------


class EnrolPlan(Message):
    """Build the model and the data set, and describe both."""

    kind: Literal["enrol"] = "enrol"
    study: StudyConfig
    want_weights: bool
    """One site is asked to send the first weights along."""
    first_round: Annotated[int, Field(ge=1)] = 1
    """The round that comes next; 1 starts the study over, more resumes it."""


class RoundPlan(Message):
    """Score the weights that come along and, if `train`, train from them."""

    kind: Literal["round"] = "round"
    ARRAYS: ClassVar[str | None] = "weights"
    study: StudyConfig
    round: Annotated[int, Field(ge=1)]
    train: bool
    notice: Annotated[str, Field(max_length=LONGEST_NOTICE, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = None
    """Why the server refused this site's last answer, for the site's own log: one line of it."""
    weights: Annotated[Any, Field(exclude=True)]
    """Arrays: every tensor of the study's layout."""


class OverlapPlan(Message):
    """Say which images there are, as keyed hashes that only sites with the same secret can make."""

    kind: Literal["overlap"] = "overlap"
    study: StudyConfig
    shared: Tokens = ()
    """Of the hashes that this site sent, those that a training site sent too: for its data manager, who can
    tell which images they are. Such a plan is answered without hashes."""


class HeadPlan(Message):
    """One step towards the study's classical heads, on features of the weights after `round`."""

    kind: Literal["heads"] = "heads"
    ARRAYS: ClassVar[str | None] = "arrays"
    study: StudyConfig
    round: Annotated[int, Field(ge=0)]
    weights_digest: str
    """Of the weights; a site that has their features at hand needs no more."""
    step: HeadStep
    arrays: Annotated[Any, Field(exclude=True)]
    """Arrays: `weights/...` in the first step a site gets, and what the step names."""


Plan: TypeAlias = EnrolPlan | RoundPlan | HeadPlan | OverlapPlan


# --- answers: site to server -----------------------------------------------------------------


class Enrolment(Message):
    """What a site built, and how much it holds."""

    kind: Literal["enrolment"] = "enrolment"
    ARRAYS: ClassVar[str | None] = "weights"
    layout: dict[str, TensorSpec]
    """Tensors that will travel."""
    weights_digest: str
    """Of the tensors that travel, as this site built them."""
    frozen_digest: str
    """Of the tensors that do not."""
    preprocessing: dict[str, Any]
    """Input size, mean, standard deviation, interpolation."""
    train_counts: tuple[Annotated[int, Field(ge=0)], ...]
    """Training images per class, in the study's order."""
    test_counts: tuple[Annotated[int, Field(ge=0)], ...]
    device: str
    """What computes there, e.g. "cpu" or "NVIDIA H200"."""
    images: ImageSummary | None = None
    """None from a site without images."""
    withheld: bool = False
    """The site's policy keeps small classes, or all scores, to itself: a 0 above may stand for a few
    images, which are then neither trained on nor scored. Says nothing about whether there are any."""
    weights: Annotated[Any, Field(exclude=True)]
    """Arrays: the first weights if they were asked for, else empty."""


class RoundAnswer(Message):
    """The score of the weights that came and, from a training site, the step away from them."""

    kind: Literal["answer"] = "answer"
    ARRAYS: ClassVar[str | None] = "delta"
    round: int
    score: Score
    num_examples: Annotated[int, Field(ge=0)]
    """Images trained on in this round; the weight of the delta. 0 from a site that only scores."""
    num_steps: Annotated[int, Field(ge=0)]
    train_loss: float | None
    """Mean over the images of this round, None without training."""
    train_s: float
    evaluate_s: float
    delta: Annotated[Any, Field(exclude=True)]
    """Arrays: trained minus received, empty from a site that only scores."""


class HeadAnswer(Message):
    """Sums over a site's training images, or scores on its test images; nothing has a row per image."""

    kind: Literal["head_answer"] = "head_answer"
    ARRAYS: ClassVar[str | None] = "arrays"
    round: int
    step: Literal["statistics", "gradients", "coefficients", "score"]
    train_counts: tuple[Annotated[int, Field(ge=0)], ...]
    """Training images by class behind the arrays; all 0 where there are none."""
    results: tuple[HeadResult, ...] = ()
    seconds: float
    arrays: Annotated[Any, Field(exclude=True)]
    """Arrays: `statistics/VIEW/sums`, `squares`, `moments`; `losses/NAME` and `gradients/NAME`;
    `coefficients/NAME/weights`, `bias`. Empty for a score."""


ErrorKind: TypeAlias = Literal[
    "data", "study", "weights", "policy", "memory", "storage", "message", "unreachable", "internal"
]


class Failure(Message):
    """The site could not do what the plan asked. Says nothing about its images."""

    kind: Literal["failure"] = "failure"
    error: ErrorKind
    case: str
    """Under this number the site's own log tells the whole story."""
    advice: str
    reason: Annotated[str, Field(max_length=2000)] = ""
    """From a site whose policy refuses the plan: the rules by name and the study's own values."""

    @property
    def message(self) -> str:
        """Advice and reason as one sentence."""
        return f"{self.advice}: {self.reason}" if self.reason else self.advice


class OverlapAnswer(Message):
    """The images of a site as keyed hashes, in the order of the hashes, which says nothing of the images'.

    As many of each kind as the site enrolled images: where two of them are alike, one hash stands for
    both and another one for nothing. None at all in the answer to a plan that told what was `shared`.
    """

    kind: Literal["overlap_answer"] = "overlap_answer"
    check: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    """The same at all sites with the same secret, and of no other use."""
    same: Tokens
    """Of the pixels that an image shows."""
    similar: Tokens
    """Of its perceptual hash."""


Answer: TypeAlias = Enrolment | RoundAnswer | HeadAnswer | OverlapAnswer | Failure


def arrays_of(message: Plan | Answer) -> Arrays:
    """The tensors of a message, empty for a kind without any."""
    arrays: Arrays = getattr(message, message.ARRAYS) if message.ARRAYS else {}
    return arrays
