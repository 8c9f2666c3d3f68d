"""What a check found: ranked by what it means for the site, each with what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Rank: TypeAlias = Literal["stops", "look", "fine"]
RANKS: tuple[Rank, ...] = ("stops", "look", "fine")
"""`stops` keeps the site out of a study, `look` is for a person to judge, `fine` is what was seen to be right."""

HEADINGS: dict[Rank, str] = {"stops": "STOPS THE STUDY", "look": "worth a look", "fine": "fine"}


@dataclass(frozen=True)
class Finding:
    """One thing that is worth knowing, and what to do about it."""

    rank: Rank
    text: str


def may_take_part(findings: Iterable[Finding]) -> bool:
    """False if something stops the site."""
    return all(finding.rank != "stops" for finding in findings)
