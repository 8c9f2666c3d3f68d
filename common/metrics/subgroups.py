"""Counts of a test by subgroup: a confusion matrix for each value of an attribute, such as age bands.

They add up over sites as a score does. A row that is empty may be one that a site keeps back, because too few of its
patients are in it (`client/governance/subgroup_cells.py`); no field tells the two apart.
"""

from typing import Self

from pydantic import ConfigDict, model_validator

from common.metrics.counts import Counts
from common.settings import Frozen


class SubgroupCounts(Frozen):
    """Images of one attribute; V values in the study's order, C classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    confusion_VCC: Counts
    """By value, true class and predicted class."""

    @model_validator(mode="after")
    def _square(self) -> Self:
        shape = self.confusion_VCC.shape
        if len(shape) != 3 or shape[1] != shape[2]:
            raise ValueError(f"confusion_VCC has shape {shape}, expected a square table for each value")
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SubgroupCounts) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # an array inside
