"""Random numbers that no person can foretell or repeat: a ChaCha20 stream under a key of the machine's own."""

import secrets

import numpy as np
import numpy.typing as npt

from common.masking.stream import Stream

Numbers = npt.NDArray[np.float64]

_AT_ONCE = 2**18
"""Normal numbers that are drawn at once: 16 MB of draws."""
_SUMMANDS = 4


class SecureRandom:
    """Uniform and normal numbers."""

    def __init__(self, key: bytes | None = None) -> None:
        """`key` has 32 bytes and is for tests alone. None: from the operating system, and nowhere else."""
        self._stream = Stream(secrets.token_bytes(32) if key is None else key)

    def uniforms(self, number: int) -> Numbers:
        """Multiples of 2**-53 between 0 and 1, plus half a step: neither end can be drawn."""
        return ((self._stream.words(number) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def seed(self) -> int:
        """A whole number from 0 to 2**63 - 1, for a generator that takes one."""
        return int(self._stream.words(1)[0] >> np.uint64(1))

    def normals(self, number: int) -> Numbers:
        """Of mean 0 and standard deviation 1.

        Each is half the sum of four, which hides the gaps between floating-point numbers that one draw would show
        (Holohan and Braghin 2021, arXiv:2107.10138).
        """
        parts = [self._sums(min(_AT_ONCE, number - start)) for start in range(0, number, _AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _sums(self, number: int) -> Numbers:
        draws = self._pairs(_SUMMANDS * number).reshape(_SUMMANDS, number)
        sums: Numbers = draws.sum(axis=0) / np.sqrt(_SUMMANDS)
        return sums

    def _pairs(self, number: int) -> Numbers:
        """Box and Muller 1958; `number` is even."""
        first, second = self.uniforms(number).reshape(2, -1)
        length, turn = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
        return np.concatenate([length * np.cos(turn), length * np.sin(turn)])
