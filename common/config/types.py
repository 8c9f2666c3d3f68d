"""Types that several parts of a study's settings share."""

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints

from common.text import require_line

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A name that is safe as a file name: letters, digits, `_`, `.`, `-`."""

ScoredSide: TypeAlias = Literal["validation", "test"]
"""Sides of a site's split that models are scored on: choices are made on validation images alone."""

MaskPhase: TypeAlias = Literal["census", "training", "scoring", "test", "heads"]
"""What a masked sum is for: the counts of images before round 1; a round of training with its scores; the closing
evaluation; the test of chosen weights; a step towards classical heads. Each has keys of its own, so a number alone
names no sum. It is the round's, and in the phase `heads` that of the sum, from 1."""

LONGEST_LINE = 500

Line = Annotated[str, StringConstraints(max_length=LONGEST_LINE), AfterValidator(require_line)]
"""One line of plain text: no line break, no control code, at most 500 characters."""

LibraryName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,199}$")]
"""A name of a library's or a hub's, e.g. of an encoder: letters, digits, `_ . : / @ + -`, at most 200 of them."""

MOST_ROUNDS = 10**9 - 1
"""Most rounds of a study: what a message can number, with the closing evaluation."""

MOST_NAMES = 1000
"""Most classes and most sites of a study."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A share of a whole, 0 to 1."""

Positive = Annotated[float, Field(gt=0)]
"""A number above 0."""

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Share of an earlier value that is kept, below 1."""
