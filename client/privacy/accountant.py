"""Epsilon of everything that a site has let out, by the numerical accountant of Opacus.

Privacy loss random variables are composed exactly, up to rounding that is counted against the site (Gopi et al. 2021,
arXiv:2106.02848). Where that takes too long, because epsilon is large, Rényi divergences bound it from above (Mironov
et al. 2019, arXiv:1908.10530). Charges of several studies are composed as if all were on the same patients.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_LARGEST = 50.0
"""Epsilon above which the coarser bound will do: it says that there is next to no privacy either way."""


@dataclass(frozen=True)
class Charge:
    """Noise on sums over patients who were drawn by chance."""

    noise: float
    """Standard deviation, in units of what one patient can add."""
    rate: float
    """Chance of a patient to be drawn; 1: all are in it."""
    steps: int
    """How often."""


def epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Upper bound on epsilon of all these charges together, for a patient who is added or removed."""
    steps: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        steps[charge.noise, charge.rate] += charge.steps
    return _epsilon(tuple(sorted((noise, rate, number) for (noise, rate), number in steps.items())), delta)


@lru_cache(maxsize=256)
def _epsilon(history: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if not history:
        return 0.0
    coarse = _renyi(history, delta)
    return coarse if coarse > _LARGEST else min(coarse, _exact(history, delta, coarse))


def _renyi(history: tuple[tuple[float, float, int], ...], delta: float) -> float:
    from opacus.accountants.analysis import rdp  # two seconds, which other studies need not wait

    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64)) + [128, 256, 512]
    total = sum(
        rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
        for noise, rate, steps in history
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an order that is the first or the last: the bound still holds
        found, _ = rdp.get_privacy_spent(orders=orders, rdp=total, delta=delta)
    return float(found)


def _exact(history: tuple[tuple[float, float, int], ...], delta: float, otherwise: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    try:
        with np.errstate(divide="ignore"), warnings.catch_warnings():  # where every patient is in it
            warnings.simplefilter("ignore")
            return float(accountant.get_epsilon(delta))
    except (RuntimeError, ValueError):  # its grid does not fit these numbers
        return otherwise
