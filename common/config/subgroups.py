"""Settings of the figures by subgroup: age bands, sex, body site, skin type, or whatever else the sites know.

The study names an attribute and its values. A site says which column of its own table holds it, and how its values
are called there (`client/config/subgroups.py`). A site without such a column takes part without it.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator

from common.config.types import Name
from common.settings import Frozen

if TYPE_CHECKING:
    from common.config.study import StudyConfig

MOST_ATTRIBUTES, MOST_VALUES = 8, 24

Edge = Annotated[int, Field(ge=0, le=10**6)]
Edges = Annotated[tuple[Edge, ...], Field(min_length=2, max_length=MOST_VALUES + 1)]


def require_rising(edges: tuple[int, ...]) -> tuple[int, ...]:
    """Raises ValueError unless each edge is larger than the one before."""
    if any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"found bands {list(edges)}, expected edges that rise, such as [0, 40, 60, 120]")
    return edges


class Bands(Frozen):
    """Bands of a number, such as an age in years."""

    bands: Edges
    """Edges from the lowest to the highest. A band begins with its lower edge and ends before its upper one."""

    _rise = field_validator("bands")(require_rising)


Values = Annotated[tuple[Name, ...], Field(min_length=1, max_length=MOST_VALUES)]


def _form(attribute: object) -> str:
    """So that a mistake is named once, not for each form that it might have had."""
    return "bands" if isinstance(attribute, dict | Bands) else "values"


Attribute: TypeAlias = Annotated[
    Annotated[Values, Tag("values")] | Annotated[Bands, Tag("bands")], Discriminator(_form)
]
"""Values by name, or bands of a number."""

Subgroups: TypeAlias = Annotated[dict[Name, Attribute], Field(min_length=1, max_length=MOST_ATTRIBUTES)]


def titles(attribute: tuple[str, ...] | Bands) -> tuple[str, ...]:
    """Names of an attribute's values, in their order."""
    if isinstance(attribute, Bands):
        return tuple(f"{low} to below {high}" for low, high in pairwise(attribute.bands))
    return attribute


def wrong_subgroups(study: "StudyConfig") -> str | None:
    """Why this study cannot have figures by subgroup, or None; a study without them always fits."""
    for name, attribute in (study.subgroups or {}).items():
        if len({value.casefold() for value in titles(attribute)}) < len(titles(attribute)):
            return f"{name} has a value twice; name each once"
    if study.subgroups is not None and study.curves_on == "test":
        return "are of one test at the end, found curves_on=test; leave curves_on out"
    if study.subgroups is not None and study.privacy is not None:
        return "do not go with privacy, whose scores do not leave; leave one of them out"
    return None
