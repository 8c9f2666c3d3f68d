"""Intervals of figures over patients, per site and pooled, and of the difference of two models on the same patients.

Sites send replicates of their patients' counts (`common/metrics/replicates.py`). A figure is linearised at the counts
of all sites together (delta method), so a replicate of the figure is a sum over sites. Its standard deviation is that
of the figure if patients were drawn again at every site. Two models on the same patients have replicates of the same
draws, so those of their difference are differences.

The AUROC of several sites compares images of different sites, which no site's sums know. Its variance is therefore
that of DeLong et al. 1988 (doi:10.2307/2531595) on the pooled histogram, times the ratio of the variance over patients
and the same formula at the sites (a design effect: Kish 1965, Survey Sampling, 8.2). At one site it is exact.

An interval of a share is normal on the scale of its log odds, with Student's t of as many degrees of freedom as there
are patients less sites.

R replicates, V columns, C classes.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from common import seeds
from common.metrics import Score, figures
from common.metrics.auroc import deviation
from common.metrics.pooling import total
from common.metrics.ratios import RATIOS, gradient
from common.metrics.replicates import NUM_REPLICATES, Replicates

Floats = npt.NDArray[np.float64]

AUROC, AVG_OF_SIX = "auroc_macro", "avg_acc_bacc_pre_rec_f1_auroc"
FIGURES = (*RATIOS, AUROC, AVG_OF_SIX)
"""Figures with intervals, by the names that `Figures` has for them."""


@dataclass(frozen=True)
class Resampled:
    """One figure and its replicates: the deviations from it, one for each draw of the patients."""

    value: float
    deviations_R: Floats
    num_free: int
    """Degrees of freedom: patients less sites."""

    @property
    def variance(self) -> float:
        """Of the figure over patients; the deviations' mean is 0 by construction."""
        return float(np.mean(self.deviations_R**2))


def of_scores(
    scores: Mapping[str, Score], replicates: Mapping[str, Replicates], *, seed: int
) -> dict[str, Resampled]:
    """The figures of these sites' images together, by name; a figure that the counts do not define is missing.

    Images of a site without replicates count as patients of one image each, and are drawn with `seed`. Nothing if no
    site has replicates.
    """
    scores = {site: score for site, score in sorted(scores.items()) if score.num_images}
    known = {site: replicates[site] for site in scores if site in replicates}
    if not known:
        return {}
    sums = {
        site: known[site].sums_RV
        if site in known
        else _of_images(score, seeds.derive(seed, "replicates", site))
        for site, score in scores.items()
    }
    pooled, values = total(scores), figures(total(scores))
    counts_3C = (
        np.concatenate([_counts(score) for score in scores.values()]).reshape(len(scores), -1).sum(axis=0)
    )
    num_free = sum(known[site].num_patients if site in known else scores[site].num_images for site in scores)
    num_free -= len(scores)
    moved_R3C = np.sum([sums_RV[:, :-1] for sums_RV in sums.values()], axis=0)
    found = {
        name: Resampled(getattr(values, name), moved_R3C @ gradient(name, counts_3C), num_free)
        for name in RATIOS
    }
    auroc_R = _auroc(pooled, scores, sums, known)
    if auroc_R is not None:
        found[AUROC] = Resampled(values.auroc_macro, auroc_R, num_free)
        six_R = (5 * found["avg_acc_bacc_pre_rec_f1"].deviations_R + auroc_R) / 6
        found[AVG_OF_SIX] = Resampled(values.avg_acc_bacc_pre_rec_f1_auroc, six_R, num_free)
    return found


def _counts(score: Score) -> Floats:
    """(3C,): right answers, images and predictions by class."""
    confusion_CC = score.confusion_CC.astype(np.float64)
    return np.concatenate([np.diag(confusion_CC), confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)])


def _of_images(score: Score, seed: int) -> Floats:
    """(R, V): replicates of a site that sent none, as if every image were a patient of its own."""
    num_classes, num_images = len(score.confusion_CC), score.num_images
    draws = np.random.default_rng(seed)
    cells = np.argwhere(score.confusion_CC > 0)
    values_MV = np.zeros((len(cells), 3 * num_classes))
    for row, (label, predicted) in enumerate(cells):
        values_MV[row, [num_classes + label, 2 * num_classes + predicted]] = 1
        values_MV[row, label] = label == predicted
    images_M = score.confusion_CC[tuple(cells.T)].astype(np.float64)
    centred_MV = values_MV - images_M @ values_MV / num_images
    multipliers_RM = draws.standard_normal((NUM_REPLICATES, len(cells))) * np.sqrt(images_M)
    known = deviation(score)
    auroc_R = (0.0 if math.isnan(known) else known * num_images) * draws.standard_normal(NUM_REPLICATES)
    return np.column_stack([multipliers_RM @ centred_MV, auroc_R])


def _auroc(
    pooled: Score, scores: Mapping[str, Score], sums: Mapping[str, Floats], known: Collection[str]
) -> Floats | None:
    """Deviations of the pooled AUROC; None if no site of `known` can say how patients make it vary."""
    together = np.zeros(NUM_REPLICATES)
    effects, weights = [], []
    for site, score in scores.items():
        parts_R, independent = sums[site][:, -1], deviation(score)
        together += parts_R
        if site in known and independent > 0:  # not NaN either
            effects.append(float(np.mean(parts_R**2)) / (independent * score.num_images) ** 2)
            weights.append(score.num_images)
    spread = math.sqrt(float(np.mean(together**2)))
    if not effects or spread == 0 or math.isnan(deviation(pooled)):
        return None
    effect = float(np.average(effects, weights=weights))
    return together * (deviation(pooled) * math.sqrt(effect) / spread)


@dataclass(frozen=True)
class Estimate:
    """A figure, or a difference of two, over patients and, where several seeds were run, over seeds."""

    value: float
    variance_patients: float
    variance_seeds: float
    """Of the mean of the seeds; 0 for one seed, which says nothing of others."""
    num_free: float
    """Degrees of freedom of both together (Satterthwaite 1946, doi:10.2307/3002019)."""
    num_seeds: int
    is_difference: bool

    @property
    def deviation(self) -> float:
        """Standard error."""
        return math.sqrt(self.variance_patients + self.variance_seeds)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Both ends, NaN where nothing varies: all patients alike is no proof that others are."""
        if not (self.deviation > 0 and math.isfinite(self.value)):
            return math.nan, math.nan
        half = student_t((1 + confidence) / 2, self.num_free) * self.deviation
        if self.is_difference:
            return self.value - half, self.value + half
        if not 0 < self.value < 1:
            return math.nan, math.nan
        middle, half = math.log(self.value / (1 - self.value)), half / (self.value * (1 - self.value))
        return _share(middle - half), _share(middle + half)

    @property
    def p(self) -> float:
        """Two-sided p of no difference; NaN where nothing varies."""
        if not (self.is_difference and self.deviation > 0):
            return math.nan
        return two_sided_p(self.value / self.deviation, self.num_free)


def estimate(seeds_found: Mapping[int, Resampled]) -> Estimate:
    """The mean of the seeds' figures, which are of the same patients."""
    return _joined(list(seeds_found.values()), is_difference=False)


def difference(first: Mapping[int, Resampled], second: Mapping[int, Resampled], *, paired: bool) -> Estimate:
    """The mean of `first` less that of `second`, by seed.

    `paired`: both are of the same patients with the same random numbers; otherwise they count as independent. Seeds are
    compared one by one if both have the same.
    """
    if paired and first.keys() == second.keys():
        return _joined([_minus(first[seed], second[seed]) for seed in first], is_difference=True)
    one, other = estimate(first), estimate(second)
    if paired:
        patients = _minus(_mean(list(first.values())), _mean(list(second.values()))).variance
    else:
        patients = one.variance_patients + other.variance_patients
    parts = [
        (patients, min(_free(first), _free(second))),
        (one.variance_seeds, one.num_seeds - 1),
        (other.variance_seeds, other.num_seeds - 1),
    ]
    return Estimate(
        one.value - other.value,
        patients,
        one.variance_seeds + other.variance_seeds,
        _satterthwaite(parts),
        min(one.num_seeds, other.num_seeds),
        is_difference=True,
    )


def _joined(found: list[Resampled], *, is_difference: bool) -> Estimate:
    """The variance over patients of the seeds' mean, plus the variance over seeds of that mean.

    The seeds' variance on these patients has a part of the patients' in it, so the sum is a little too large.
    """
    mean = _mean(found)
    between = float(np.var([one.value for one in found], ddof=1)) / len(found) if len(found) > 1 else 0.0
    free = _satterthwaite([(mean.variance, mean.num_free), (between, len(found) - 1)])
    return Estimate(mean.value, mean.variance, between, free, len(found), is_difference)


def _mean(found: list[Resampled]) -> Resampled:
    deviations_R = np.mean([one.deviations_R for one in found], axis=0)
    return Resampled(
        float(np.mean([one.value for one in found])), deviations_R, min(one.num_free for one in found)
    )


def _minus(first: Resampled, second: Resampled) -> Resampled:
    return Resampled(
        first.value - second.value,
        first.deviations_R - second.deviations_R,
        min(first.num_free, second.num_free),
    )


def _free(found: Mapping[int, Resampled]) -> int:
    return min(one.num_free for one in found.values())


def _satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances, given each and its own."""
    there = [(variance, free) for variance, free in parts if variance > 0]
    if not there:
        return math.inf
    return float(sum(variance for variance, _ in there) ** 2 / sum(v**2 / max(free, 1) for v, free in there))


def _share(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0


def student_t(share: float, num_free: float) -> float:
    """Quantile of Student's t distribution above its middle, by bisection."""
    if num_free > _MANY:
        return NormalDist().inv_cdf(share)
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - two_sided_p(middle, num_free) / 2 < share else (low, middle)
    return (low + high) / 2


def two_sided_p(t: float, num_free: float) -> float:
    """Chance of a value at least as far from 0 in Student's t distribution.

    With t = sqrt(f) tan(a) the density is that of cos(a) to the power of f - 1, from 0 to a right angle.
    """
    if num_free > _MANY:
        return 2 * (1 - NormalDist().cdf(abs(t)))
    angle = math.atan(abs(t) / math.sqrt(num_free))
    nodes, weights = _nodes()

    def integral(start: float) -> float:
        half = (math.pi / 2 - start) / 2
        return half * float(weights @ np.cos(start + half * (nodes + 1)) ** (num_free - 1))

    return integral(angle) / integral(0.0)


_MANY = 1000.0
"""Degrees of freedom above which Student's t is taken as normal: its 97.5 % quantile is 0.1 % larger."""


@cache
def _nodes() -> tuple[Floats, Floats]:
    """Places and weights of Gauss-Legendre quadrature from -1 to 1.

    They are eigenvalues of a matrix, which an import of this file has no time for.
    """
    places, weights = np.polynomial.legendre.leggauss(300)
    return places, weights
