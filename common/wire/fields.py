"""What messages are made of: limits, kinds of field, and the base of every message."""

import re
from typing import Annotated, ClassVar, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from common.config import Share
from common.config.types import MOST_NAMES, Line, Name, ScoredSide
from common.masking.tables import MOST_IMAGES
from common.settings import Frozen

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


def device_name(name: str) -> str:
    """A driver's name of a device in the characters that an enrolment takes."""
    plain = re.sub(r"[^A-Za-z0-9 _.,:/()+-]+", " ", name).strip(" _.,:/()+-")[:100].strip()
    return plain or "unnamed device"
