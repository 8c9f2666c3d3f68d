"""Result of a reader: rows, problems, and what lies in the data set and is not used."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from client.data.manifest import ImageRow
from common.log import event


@dataclass(frozen=True)
class Unused:
    """Files or entries of one kind that lie in the data set and are not used, or not as they stand."""

    kind: str
    """A plural noun, e.g. "files of the operating system"."""
    names: tuple[str, ...]
    is_usual: bool = False
    """True for what lies in most data sets, so that no person has to look at it."""
    what: str = "not used"
    """What became of them."""

    @property
    def text(self) -> str:
        """For a person: what became of them, the number, the kind, and a few of the names."""
        shown = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        return f"{self.what}: {len(self.names)} {self.kind} ({shown})"

    def log(self) -> None:
        """A line for the log; a warning if a person should look."""
        event(
            self.text,
            level=logging.INFO if self.is_usual else logging.WARNING,
            kind=self.kind,
            number=len(self.names),
        )


class ReadRows(NamedTuple):
    """Contents of a data set, as one reader reads it."""

    rows: list[ImageRow]
    problems: list[str]
    unused: list[Unused]


def by_kind(names: Mapping[str, Sequence[str]], usual: Iterable[str] = ()) -> Iterator[Unused]:
    """One entry for each kind that has names, in alphabetical order."""
    usual = frozenset(usual)
    for kind, of_kind in sorted(names.items()):
        if of_kind:
            yield Unused(kind, tuple(of_kind), kind in usual)
