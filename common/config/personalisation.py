"""Settings of personal models: what a site trains for itself beside the study's global model.

A personal model never leaves its site, and it changes nothing of the global one. Its score on the site's test images
leaves once, at the end of the study.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from common.config.types import Positive
from common.settings import Frozen

OwnModel: TypeAlias = Literal["personal", "alone"]
"""`personal`: trained with the study's help. `alone`: trained without."""


class _Compared(Frozen):
    alone: bool = False
    """Each training site also trains a model alone, from the first weights and with as many rounds, to compare with."""


class NoPersonal(_Compared):
    """No personal model."""

    kind: Literal["none"] = "none"


class LocalHead(_Compared):
    """A head of the site's own on the received encoder (FedPer, Arivazhagan et al. 2019, arXiv:1912.00818)."""

    kind: Literal["local_head"] = "local_head"


class Ditto(_Compared):
    """A network of the site's own that is drawn to the received weights (Ditto, Li et al. 2021, arXiv:2012.04221)."""

    kind: Literal["ditto"] = "ditto"
    mu: Positive = 0.1
    """Strength of the pull: mu/2 times the squared distance is added to the loss."""


Personalisation: TypeAlias = Annotated[NoPersonal | LocalHead | Ditto, Field(discriminator="kind")]


def own_models(settings: NoPersonal | LocalHead | Ditto) -> tuple[OwnModel, ...]:
    """The models that each training site has for itself."""
    personal: tuple[OwnModel, ...] = () if isinstance(settings, NoPersonal) else ("personal",)
    return (*personal, "alone") if settings.alone else personal
