"""Steps of secure aggregation before and after a round's masked answer, and the masked census, as a `MaskPlan` names
them."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StringConstraints

from common.config.types import MOST_NAMES, Name
from common.masking.roster import Announcement
from common.settings import Frozen

Sealed: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,512}$")]
"""An envelope, in hexadecimal digits."""

MaskShare: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A share of 32 bytes, in hexadecimal digits."""

MaskedWord: TypeAlias = Annotated[int, Field(ge=0, lt=2**64)]
"""A whole number modulo 2**64 under a mask."""

Announcements: TypeAlias = Annotated[dict[Name, Announcement], Field(min_length=2, max_length=MOST_NAMES)]
Envelopes: TypeAlias = Annotated[dict[Name, Sealed], Field(max_length=MOST_NAMES)]
MaskShares: TypeAlias = Annotated[dict[Name, MaskShare], Field(max_length=MOST_NAMES)]


class KeysStep(Frozen):
    """Make keys for the round, and announce their public halves."""

    kind: Literal["keys"] = "keys"


class SharesStep(Frozen):
    """Seal shares of this site's secrets for each of these sites."""

    kind: Literal["shares"] = "shares"
    announcements: Announcements


class CensusStep(Frozen):
    """Send this site's counts of images by class under the masks of the census."""

    kind: Literal["census"] = "census"
    envelopes: Envelopes
    """Shares that the other sites of the sum sealed for this one."""


class RevealStep(Frozen):
    """Send the shares that take the masks off the sum of these sites' answers."""

    kind: Literal["reveal"] = "reveal"
    survivors: Annotated[tuple[Name, ...], Field(min_length=2, max_length=MOST_NAMES)]
    """Sites whose masked answers were added up, in the order of names."""


MaskStep: TypeAlias = Annotated[KeysStep | SharesStep | CensusStep | RevealStep, Field(discriminator="kind")]
