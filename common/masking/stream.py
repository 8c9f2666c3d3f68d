"""Masks: numbers that look random without the seed (ChaCha20, RFC 8439).

A seed masks several things in one answer: the update, and each table of counts. Each has a stream of its own, so that
no two share a mask, whatever their sizes.
"""

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

Words = npt.NDArray[np.uint64]
"""Whole numbers modulo 2**64."""

UPDATE = "update"
"""Use of a seed for a site's update. The other uses are the names of tables, such as `scores/test`."""

_NONCE = bytes(16)  # a key is used once
_USE = b"consilium masking 2: stream of "


class Stream:
    """The mask of one key, word by word."""

    def __init__(self, key: bytes) -> None:
        """`key` has 32 bytes."""
        self._encryptor = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()

    def words(self, number: int) -> Words:
        """The next words of the mask."""
        return np.frombuffer(self._encryptor.update(bytes(8 * number)), "<u8").astype(np.uint64, copy=False)


def stream_of(seed: bytes, use: str) -> Stream:
    """The mask of one seed for one use (HKDF-Expand with SHA-256, RFC 5869)."""
    return Stream(HKDFExpand(hashes.SHA256(), 32, info=_USE + use.encode()).derive(seed))


def add(words: Words, stream: Stream) -> None:
    """Add the next words of a mask to `words`, in place, modulo 2**64."""
    words += stream.words(words.size).reshape(words.shape)


def subtract(words: Words, stream: Stream) -> None:
    """Undo `add`."""
    words -= stream.words(words.size).reshape(words.shape)
