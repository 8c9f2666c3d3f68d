"""Tables of whole numbers of several sites, of which the server can read the sums alone."""

from collections.abc import Collection, Mapping

import numpy as np

from common.masking.stream import Words, apply, stream_of
from common.weights import Arrays


class MaskedTables:
    """Adds masked tables as they arrive; `unmask` takes off what is left of the masks."""

    def __init__(self) -> None:
        self._sums: dict[str, Words] = {}
        self._sites: set[str] = set()

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites whose tables were added, in the order of names."""
        return tuple(sorted(self._sites))

    def add(self, site: str, tables: Arrays) -> None:
        """Add the tables of one site. All sites have the same names and shapes."""
        assert site not in self._sites, "a site has one vote a round"
        self._sites.add(site)
        for name, words in tables.items():
            before = self._sums.get(name)
            self._sums[name] = words.astype(np.uint64, copy=True) if before is None else before + words

    def unmask(self, added: Collection[bytes], subtracted: Collection[bytes]) -> None:
        """Take masks off: those of seeds that sites `added`, and that they `subtracted`."""
        for name, words in self._sums.items():
            plus, minus = ([stream_of(seed, name) for seed in seeds] for seeds in (added, subtracted))
            apply(words, added=minus, subtracted=plus)

    @property
    def sums(self) -> Mapping[str, Words]:
        """Sums by name; random numbers before `unmask`."""
        return self._sums
