"""Duplicate images: the same file, or nearly the same picture.

A picture on both sides of the split measures memory, whatever its lesion is called. SHA-256
detects the same file. A perceptual hash detects a picture that was saved again, or shrunk:
64 bits of its coarse frequencies (pHash, Zauner 2010), of which few differ.
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
    """Perceptual hash of a picture, 64 bits."""
    return int(str(imagehash.phash(Image.fromarray(square))), 16)


def same(digests: Sequence[str]) -> list[tuple[int, ...]]:
    """Places of equal digests, each group once, in the order of the first of them."""
    places = defaultdict(list)
    for place, digest in enumerate(digests):
        places[digest].append(place)
    return [tuple(equal) for equal in places.values() if len(equal) > 1]


def near(fingerprints: Sequence[int], most: int = NEAR) -> Iterator[tuple[int, int, int]]:
    """Pairs of places, the first before the second, whose fingerprints differ in at most `most` bits."""
    bits_N = np.array(fingerprints, np.uint64)
    for start in range(0, len(bits_N), _BLOCK):
        block_B = bits_N[start : start + _BLOCK]
        distances_BN = np.bitwise_count(block_B[:, None] ^ bits_N[None, start:])
        for one, other in np.argwhere(distances_BN <= most):
            if one < other:
                yield start + int(one), start + int(other), int(distances_BN[one, other])
