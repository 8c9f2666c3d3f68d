"""Findings of a check: ranked by what they mean for the site, each with what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from client.data.manifest import ImageRow
from common.text import one_line

Rank: TypeAlias = Literal["stops", "look", "fine"]
RANKS: tuple[Rank, ...] = ("stops", "look", "fine")
"""`stops` keeps the site out of a study, `look` is for a person to judge, `fine` is a check without a problem."""

_MOST_SHOWN = 20

HEADINGS: dict[Rank, str] = {"stops": "STOPS THE STUDY", "look": "worth a look", "fine": "fine"}


@dataclass(frozen=True)
class Finding:
    """One thing that is worth knowing, and what to do about it."""

    rank: Rank
    what: str
    items: tuple[str, ...] = ()
    """Each file or row."""
    rows: tuple[ImageRow, ...] = ()
    """Images that show it, for a person to see."""

    @property
    def text(self) -> str:
        """For a terminal: a long list is cut, and what a file's name does to a terminal is written as its escape."""
        what = "\n".join(one_line(line) for line in self.what.split("\n"))
        if not self.items:
            return what
        more = [f"  ... and {len(self.items) - _MOST_SHOWN} more"] if len(self.items) > _MOST_SHOWN else []
        return "\n".join([f"{what}:", *(f"  {one_line(item)}" for item in self.items[:_MOST_SHOWN]), *more])


def may_take_part(findings: Iterable[Finding]) -> bool:
    """False if something stops the site."""
    return all(finding.rank != "stops" for finding in findings)


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first, else in the order in which they came."""
    return tuple(sorted(findings, key=lambda finding: RANKS.index(finding.rank)))
