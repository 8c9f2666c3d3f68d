"""Partition of one data set among simulated sites, whole patients and lesions at a time.

What hospitals differ in can be chosen: where images were made (`ByAcquisition`), nothing (`Alike`),
how often each class is seen (`LabelSkew`), how many images there are (`QuantitySkew`), or which class is
seen at all (`ClassPerSite`). A seed gives the same sites whatever the order of the rows, and random
numbers come from `random.random` alone, whose sequence Python promises to keep.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias, assert_never

from client.data.splitting.stratify import deal
from common.errors import SiteDataError
from common.seeds import derive

_ROUNDS, _CLOSE = 1000, 1e-6


@dataclass(frozen=True)
class ByAcquisition:
    """A site for each device, clinic or collection that the data names."""


@dataclass(frozen=True)
class Alike:
    """Sites of one size, each with every class in the same proportion (IID)."""

    num_sites: int


@dataclass(frozen=True)
class LabelSkew:
    """Sites of one size that see classes in proportions of their own.

    Each site's are drawn from Dirichlet(alpha * p), p being those of all images (Hsu et al. 2019,
    arXiv:1909.06335): a large alpha makes sites alike, a small one gives each little but one class. Hsu draws
    images until a class runs out; here the proportions are fitted, as a table to its margins, so that
    every image goes somewhere and sites stay as large as each other.
    """

    num_sites: int
    alpha: float


@dataclass(frozen=True)
class QuantitySkew:
    """Sites with every class in the same proportion, whose sizes are drawn from Dirichlet(alpha) (Li et al.
    2022, arXiv:2102.02079)."""  # fmt: skip

    num_sites: int
    alpha: float


@dataclass(frozen=True)
class ClassPerSite:
    """A site for each class, with nothing else: the worst case."""


Partition: TypeAlias = ByAcquisition | Alike | LabelSkew | QuantitySkew | ClassPerSite


@dataclass(frozen=True)
class Piece:
    """One image, as far as sharing out is concerned."""

    label: str
    group: str
    """What must stay together; a name that is the same on every machine."""
    acquisition: str | None


def shared_out(pieces: Sequence[Piece], how: Partition, seed: int) -> list[str]:
    """The site of each image. Raises SiteDataError if a site would stay empty or an image has none.

    A group whose images are of several acquisitions or classes goes where most of them belong.
    """
    labels, groups = [piece.label for piece in pieces], [piece.group for piece in pieces]
    match how:
        case ByAcquisition():
            return _with_most([_acquisition(piece, pieces) for piece in pieces], groups)
        case ClassPerSite():
            return _with_most(labels, groups)
        case Alike(num_sites):
            shares = dict.fromkeys(labels, [1 / num_sites] * num_sites)
        case LabelSkew(num_sites, alpha):
            shares = _skewed(Counter(labels), num_sites, alpha, seed)
        case QuantitySkew(num_sites, alpha):
            draws = Random(derive(seed, "sizes of sites"))
            sizes = _parts([_log_gamma(alpha, draws) for _ in range(num_sites)])
            shares = dict.fromkeys(labels, sizes)
        case _:
            assert_never(how)
    bins = deal(labels, groups, shares, seed)
    names = [f"site-{number:0{len(str(num_sites))}d}" for number in range(1, num_sites + 1)]
    if empty := sorted(set(range(num_sites)) - set(bins)):
        raise SiteDataError(
            f"{len(pieces)} images of {len(set(groups))} patients or lesions leave "
            f"{', '.join(names[place] for place in empty)} of {num_sites} sites without an image. Make fewer "
            "sites, or take another seed or a larger alpha."
        )
    return [names[number] for number in bins]


def _acquisition(piece: Piece, pieces: Sequence[Piece]) -> str:
    if piece.acquisition is None:
        unknown = sum(other.acquisition is None for other in pieces)
        raise SiteDataError(
            f"{unknown} of {len(pieces)} images do not say which device, clinic or collection they are from; name the "
            "column that does (--column, or data.columns.acquisition in the YAML), or make sites in another way."
        )
    return piece.acquisition


def _with_most(names: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The name that most images of each one's group have; of several, the first in the alphabet."""
    votes: dict[str, Counter[str]] = {}
    for name, group in zip(names, groups, strict=True):
        votes.setdefault(group, Counter())[name] += 1
    home = {
        group: min(counts, key=lambda name: (-counts[name], name)) for group, counts in votes.items()
    }  # fmt: skip
    return [home[group] for group in groups]


# --- proportions -----------------------------------------------------------------------------

# Proportions are kept as logarithms: of a small alpha most are too small for a float, and yet they say
# who gets a class that no site wants.


def _skewed(
    class_counts: Mapping[str, int], num_sites: int, alpha: float, seed: int
) -> dict[str, list[float]]:
    """Of each class, the part that each site gets."""
    names = sorted(class_counts)
    total = sum(class_counts.values())
    priors_C = [class_counts[name] / total for name in names]
    drawn_SC = []
    for site in range(num_sites):
        draws = Random(derive(seed, "classes of site", site))
        drawn_SC.append([_log_gamma(alpha * prior, draws) for prior in priors_C])
    fitted_SC = _fitted(drawn_SC, list(map(math.log, priors_C)))
    columns = zip(*fitted_SC, strict=True)
    return {name: _parts(column_S) for name, column_S in zip(names, columns, strict=True)}


def _fitted(table_SC: Sequence[Sequence[float]], columns_C: Sequence[float]) -> list[list[float]]:
    """The table with equal row sums and these column sums that is nearest to what was drawn; all logarithms.

    Iterative proportional fitting (Deming and Stephan 1940, doi:10.1214/aoms/1177731829); columns are
    exact, rows as near as `_ROUNDS` bring them (with an alpha below 0.01, some sites stay larger).
    """
    row_sum = -math.log(len(table_SC))
    fitted_SC = [list(row_C) for row_C in table_SC]
    for _ in range(_ROUNDS):
        excess_S = [_log_sum(row_C) - row_sum for row_C in fitted_SC]
        fitted_SC = [[v - e for v in row_C] for row_C, e in zip(fitted_SC, excess_S, strict=True)]
        excess_C = [
            _log_sum(column_S) - wanted
            for column_S, wanted in zip(zip(*fitted_SC, strict=True), columns_C, strict=True)
        ]
        fitted_SC = [[v - e for v, e in zip(row_C, excess_C, strict=True)] for row_C in fitted_SC]
        if all(abs(excess) < _CLOSE for excess in excess_C):
            break
    return fitted_SC


def _parts(logs: Sequence[float]) -> list[float]:
    """What each has of the sum, rounded so that a library's last digit does not decide who gets a lesion."""
    log_sum = _log_sum(logs)
    return [round(math.exp(value - log_sum), 9) for value in logs]


def _log_sum(logs: Sequence[float]) -> float:
    highest = max(logs)
    return highest + math.log(math.fsum(math.exp(value - highest) for value in logs))


def _log_gamma(shape: float, draws: Random) -> float:
    """The logarithm of a draw from Gamma(shape, 1), which for small shapes is too small for a float.

    Marsaglia and Tsang 2000, doi:10.1145/358407.358414, for shape + 1, times U^(1/shape).
    """
    d = shape + 2 / 3
    while True:
        radius, angle = math.sqrt(-2 * math.log(_uniform(draws))), 2 * math.pi * _uniform(draws)
        normal = radius * math.cos(angle)
        v = (1 + normal / math.sqrt(9 * d)) ** 3
        if v > 0 and math.log(_uniform(draws)) < normal**2 / 2 + d - d * v + d * math.log(v):
            return math.log(d * v) + math.log(_uniform(draws)) / shape


def _uniform(draws: Random) -> float:
    return 1 - draws.random()  # in (0, 1], so that it has a logarithm
