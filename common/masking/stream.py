"""Masks: numbers that look random without the seed (ChaCha20, RFC 8439).

A seed masks several things in one answer: the update, and each table of counts. Each has a stream of its own, so that
no two share a mask, whatever their sizes.
"""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

Words = npt.NDArray[np.uint64]
"""Whole numbers modulo 2**64."""

UPDATE = "update"
"""Use of a seed for a site's update. The other uses are the names of tables, such as `scores/test`."""

PIECE = 2**16
"""Words that are masked at once: half a MiB, which a processor's cache holds beside a mask of as many."""

_ZEROS = memoryview(bytes(8 * PIECE))
_BLOCK = 64  # bytes that a cipher may need beyond its output
_NONCE = bytes(16)  # a key is used once
_USE = b"consilium masking 2: stream of "


class Stream:
    """The mask of one key, word by word."""

    def __init__(self, key: bytes) -> None:
        """`key` has 32 bytes."""
        self._encryptor = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()

    def words(self, number: int) -> Words:
        """The next words of the mask."""
        mask = np.zeros(number, np.uint64)
        apply(mask, added=[self])
        return mask

    def fill(self, piece: bytearray, number: int) -> Words:
        """The next `number` words, `PIECE` at most, in the memory of `piece`."""
        self._encryptor.update_into(_ZEROS[: 8 * number], piece)
        return np.frombuffer(piece, "<u8", number)


def stream_of(seed: bytes, use: str) -> Stream:
    """The mask of one seed for one use (HKDF-Expand with SHA-256, RFC 5869)."""
    return Stream(HKDFExpand(hashes.SHA256(), 32, info=_USE + use.encode()).derive(seed))


def apply(words: Words, added: Collection[Stream] = (), subtracted: Collection[Stream] = ()) -> None:
    """Add and subtract the next words of these masks, in place, modulo 2**64.

    All masks go over one piece before the next, so that the piece stays in the processor's cache: that is five times as
    fast as one mask after the other over the whole array.
    """
    if not words.flags.c_contiguous:
        raise ValueError("found words that do not lie side by side, expected a contiguous array")
    flat = words.reshape(-1)
    mask = bytearray(8 * min(flat.size, PIECE) + _BLOCK)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        for stream in added:
            piece += stream.fill(mask, piece.size)
        for stream in subtracted:
            piece -= stream.fill(mask, piece.size)
