"""The mean weighted by examples, of updates that the server cannot read: their masks cancel in the sum."""

from collections.abc import Collection

import numpy as np

from common.config.types import MOST_NAMES
from common.errors import QuorumNotMet
from common.masking import grid
from common.masking.stream import UPDATE, Words, apply, stream_of
from common.masking.tables import IMAGES, MOST_IMAGES
from common.weights import Array, Layout
from server.aggregation.update import AdmittedUpdate


class MaskedMean:
    """Sums masked updates as they arrive; `unmask` takes off what is left of the masks.

    The result is that of `RunningMean` on the same updates without masks, bit for bit.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sums: dict[str, Words] = {}
        self._images = np.zeros(1, np.uint64)
        self._sites: set[str] = set()

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites whose updates were added, in the order of names."""
        return tuple(sorted(self._sites))

    def add(self, update: AdmittedUpdate) -> None:
        """Add one masked update, with the masked number of its images; it need not be kept after that."""
        assert update.site not in self._sites, "a site has one vote a round"
        for name, words in update.delta.items():
            if name == IMAGES:
                self._images = self._images + words
            elif name in self._sums:
                self._sums[name] += words
            else:
                self._sums[name] = words.astype(np.uint64, copy=True)
        self._sites.add(update.site)

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
        plus, minus = ([stream_of(seed, IMAGES) for seed in seeds] for seeds in (added, subtracted))
        apply(self._images, added=minus, subtracted=plus)
        if not len(self._sites) <= self.num_examples <= len(self._sites) * MOST_NAMES * MOST_IMAGES:
            raise QuorumNotMet(
                "the sites' numbers of images add up to none: a site sent a wrong one; nothing of the round is used"
            )

    @property
    def num_examples(self) -> int:
        """Images of all these sites together; a random number before `unmask`."""
        return int(self._images.view(np.int64)[0])

    @property
    def _most(self) -> float:
        return len(self._sites) * grid.LARGEST * grid.COARSE

    def _wholes(self, name: str) -> tuple[grid.Wholes, grid.Wholes]:
        coarse, fine = self._sums[name].view(np.int64)
        return coarse, fine

    def result(self, without: Collection[str] = ()) -> dict[str, Array]:
        """The mean. Raises QuorumNotMet if there is nothing to average."""
        assert not without, "what is masked cannot be taken out"
        if not self._sites:
            raise QuorumNotMet("found no update to average, expected at least one")
        total = self.num_examples
        return {name: grid.mean(*self._wholes(name), total, self._layout[name].dtype) for name in self._sums}
