"""Masks: numbers that look random without the seed (ChaCha20, RFC 8439)."""

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

Words = npt.NDArray[np.uint64]
"""Whole numbers modulo 2**64."""

_NONCE = bytes(16)  # a seed is used once


class Stream:
    """The mask of one seed, word by word."""

    def __init__(self, seed: bytes) -> None:
        """`seed` has 32 bytes."""
        self._encryptor = Cipher(algorithms.ChaCha20(seed, _NONCE), mode=None).encryptor()

    def words(self, number: int) -> Words:
        """The next words of the mask."""
        return np.frombuffer(self._encryptor.update(bytes(8 * number)), "<u8").astype(np.uint64, copy=False)


def add(words: Words, stream: Stream) -> None:
    """Add the next words of a mask to `words`, in place, modulo 2**64."""
    words += stream.words(words.size).reshape(words.shape)


def subtract(words: Words, stream: Stream) -> None:
    """Undo `add`."""
    words -= stream.words(words.size).reshape(words.shape)
