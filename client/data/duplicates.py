"""Images that are there twice: the same file, or nearly the same picture.

A picture that trains and tests makes the test a matter of memory, whatever its lesion is called.
The same file is found by its SHA-256. A picture that was saved anew, or shrunk, is found by a
perceptual hash: 64 bits of its coarse frequencies (pHash, Zauner 2010), of which few differ.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data.decoding.decode import Pixels

NEAR = 4
"""Bits of 64 in which two pictures may differ and still be called nearly the same."""

_BLOCK = 512

Bits = npt.NDArray[np.uint64]


def fingerprint(square: Pixels) -> int:
    """64 bits of what a picture looks like, from afar."""
    return int(str(imagehash.phash(Image.fromarray(square))), 16)


def same(digests: Sequence[str]) -> list[tuple[int, ...]]:
    """Places of equal digests, each group once, in the order of the first of them."""
    places = defaultdict(list)
    for place, digest in enumerate(digests):
        places[digest].append(place)
    return [tuple(found) for found in places.values() if len(found) > 1]


def near(fingerprints: Sequence[int], most: int = NEAR) -> Iterator[tuple[int, int, int]]:
    """Pairs of places, the first before the second, whose fingerprints differ in at most so many bits."""
    bits_N = np.array(fingerprints, np.uint64)
    for start in range(0, len(bits_N), _BLOCK):
        block_B = bits_N[start : start + _BLOCK]
        distances_BN = np.bitwise_count(block_B[:, None] ^ bits_N[None, start:])
        for one, other in np.argwhere(distances_BN <= most):
            if one < other:
                yield start + int(one), start + int(other), int(distances_BN[one, other])
