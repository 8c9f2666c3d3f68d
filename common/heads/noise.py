"""How much noise the sums for heads have in a study with privacy: the sites put it on, and the server allows for it."""

import numpy as np

from common.config.privacy import NoisySums
from common.heads.view import Floats


def deviation(settings: NoisySums, name: str, num_arrays: int) -> float:
    """Standard deviation of the noise of one site on an entry of an array, in the array's units.

    One patient changes each of the arrays by `max_feature_norm`, to the power of its features, at most.
    """
    power = {"counts": 0, "sums": 1, "moments": 2}[name]
    return float(settings.noise * num_arrays**0.5 * settings.max_feature_norm**power)


def off_diagonal(size: int) -> Floats:
    """Factor for the noise on each entry of a triangle: 1 on the diagonal, the root of 1/2 off it."""
    width = int(((8 * size + 1) ** 0.5 - 1) / 2)
    factors_T = np.full(size, 0.5**0.5)
    places = np.arange(width)
    factors_T[places * (places + 3) // 2] = 1.0
    return factors_T


def edge(settings: NoisySums, width: int, num_arrays: int) -> float:
    """Largest eigenvalue that the noise of one site on the second moments has by itself, for many features.

    Entries off the diagonal have deviation s, so it is 2 s times the root of the width (Wigner 1958).
    """
    return float(deviation(settings, "moments", num_arrays) * (2 * width) ** 0.5)
