"""The mean weighted by examples, of updates that the server cannot read: their masks cancel in the sum."""

from collections.abc import Collection

import numpy as np

from common.errors import QuorumNotMet
from common.masking import grid
from common.masking.stream import UPDATE, Words, apply, stream_of
from common.weights import Array, Layout
from server.aggregation.update import AdmittedUpdate


class MaskedMean:
    """Sums masked updates as they arrive; `unmask` takes off what is left of the masks.

    The result is that of `RunningMean` on the same updates without masks, bit for bit.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sums: dict[str, Words] = {}
        self._counts: dict[str, int] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites whose updates were added, in the order of names."""
        return tuple(sorted(self._counts))

    def add(self, update: AdmittedUpdate) -> None:
        """Add one masked update; it need not be kept after that."""
        assert update.site not in self._counts, "a site has one vote a round"
        for name, words in update.delta.items():
            if name in self._sums:
                self._sums[name] += words
            else:
                self._sums[name] = words.astype(np.uint64, copy=True)
        self._counts[update.site] = update.num_examples

    def unmask(self, added: Collection[bytes], subtracted: Collection[bytes]) -> None:
        """Take masks off: those of seeds that sites `added`, and that they `subtracted`.

        Raises QuorumNotMet if what is left is no sum of updates.
        """
        plus, minus = ([stream_of(seed, UPDATE) for seed in seeds] for seeds in (added, subtracted))
        for name in sorted(self._sums):
            words = self._sums[name]
            apply(words, added=minus, subtracted=plus)
            coarse, _ = self._wholes(name)
            if words.size and not -self._most <= coarse.min() <= coarse.max() <= self._most:
                raise QuorumNotMet(
                    "the masks of the round's sum do not come off: a site sent wrong shares or wrong numbers; "
                    "nothing of the round is used"
                )

    @property
    def _most(self) -> float:
        return len(self._counts) * grid.LARGEST * grid.COARSE

    def _wholes(self, name: str) -> tuple[grid.Wholes, grid.Wholes]:
        coarse, fine = self._sums[name].view(np.int64)
        return coarse, fine

    def result(self, without: Collection[str] = ()) -> dict[str, Array]:
        """The mean. Raises QuorumNotMet if there is nothing to average."""
        assert not without, "what is masked cannot be taken out"
        if not self._counts:
            raise QuorumNotMet("found no update to average, expected at least one")
        total = sum(self._counts.values())
        return {name: grid.mean(*self._wholes(name), total, self._layout[name].dtype) for name in self._sums}
