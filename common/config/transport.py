"""Settings of how weights and changes of weights travel."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from common.settings import Frozen

Precision: TypeAlias = Literal["float32", "bf16", "int8"]


class TransportConfig(Frozen):
    """Fewer bytes for a round. What rounding leaves out is kept where it was rounded, and added in the next round.

    Running statistics of batch normalisation, and tensors that are not float32, always travel whole.
    """

    up: Precision = "float32"
    """Numbers of the changes that sites send. `int8` has one scale for each tensor."""
    down: Precision = "float32"
    """Numbers of the changes that the server sends. `float32`: whole weights, in each round. Else a site that
    answered the round before gets the change since then, and any other one whole weights."""
    top_k: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each tensor's entries that sites send: those that changed most. Each has a place of 4 bytes beside its
    number, so above 0.2 this saves nothing with `int8`. None: all of them."""
