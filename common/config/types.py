"""Types that several parts of a study's settings share."""

from typing import Annotated

from pydantic import Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
"""A name that is safe as a file name: letters, digits, `_`, `.`, `-`."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A share of a whole, 0 to 1."""

Positive = Annotated[float, Field(gt=0)]
"""A number above 0."""

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Share of an earlier value that is kept, below 1."""
