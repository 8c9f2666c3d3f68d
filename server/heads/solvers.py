"""Exact solvers: heads from sums over all hospitals' images.

A head that depends on the images through sums alone is the same for images in one place or in twenty. Each
function gives what scikit-learn gives on the pooled features. No function knows of sites or messages.

C classes, D features of the view. Classes without images get no part of the probability.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from common.heads import ABSENT, Floats, View
from server.heads.lbfgs import Solve


@dataclass(frozen=True)
class Statistics:
    """Sums over all images of all sites, on one view."""

    counts_C: Floats
    """Images by class; no whole number where a site counts for less than its images."""
    sums_CD: Floats
    squares_CD: Floats | None = None
    """Sums of the squares, feature by feature."""
    moments_DD: Floats | None = None
    """Sum of x xᵀ, each image weighted by its class's weight."""
    weights_C: Floats | None = None
    """Weights of the images by class; None: 1."""

    @property
    def present_C(self) -> npt.NDArray[np.bool_]:
        """Classes that have images."""
        return self.counts_C > 0

    @cached_property
    def means_CD(self) -> Floats:
        """Class means; 0 for a class without images."""
        result: Floats = self.sums_CD / np.maximum(self.counts_C, 1)[:, None]
        return result

    @property
    def weighted_C(self) -> Floats:
        """Summed weights of each class's images."""
        return self.counts_C * (np.ones(len(self.counts_C)) if self.weights_C is None else self.weights_C)


def balanced(counts_C: Floats) -> Floats:
    """Weight of an image by class: N / (K N_c) over the K classes present, 0 for the others."""
    present_C = counts_C > 0
    return np.where(present_C, counts_C.sum() / (present_C.sum() * np.maximum(counts_C, 1)), 0.0)


# --- views -----------------------------------------------------------------------------------


def scaled(raw: Statistics) -> View:
    """The view that brings each feature to mean 0 and standard deviation 1 over all images."""
    assert raw.squares_CD is not None
    count = raw.counts_C.sum()
    mean_D = raw.sums_CD.sum(0) / count
    return View(mean_D, deviations(raw.squares_CD.sum(0) / count - mean_D**2, mean_D))


def deviations(variance_D: Floats, mean_D: Floats) -> Floats:
    """Square roots; 1 for a feature that is constant up to rounding."""
    varies_D = variance_D > 1e-12 * np.maximum(mean_D**2, 1e-30)
    return np.sqrt(np.where(varies_D, variance_D, 1.0))


def principal(statistics: Statistics, view: View, num_components: int) -> View:
    """`view` (not yet reduced), followed by the leading eigenvectors of the covariance."""
    assert statistics.moments_DD is not None
    count = statistics.counts_C.sum()
    mean_D = statistics.sums_CD.sum(0) / count
    covariance_DD = statistics.moments_DD / count - np.outer(mean_D, mean_D)
    _, vectors_DD = np.linalg.eigh(covariance_DD)
    components_DK = vectors_DD[:, ::-1][:, :num_components]
    # The sign of an eigenvector is arbitrary; here its largest entry is positive.
    signs_K = np.sign(components_DK[np.abs(components_DK).argmax(0), np.arange(components_DK.shape[1])])
    return View(view.shift_F + view.scale_F * mean_D, view.scale_F, components_DK * signs_K)


def moved(raw: Statistics, view: View) -> Statistics:
    """Sums and squares after a view that only shifts and scales; no further message is needed."""
    assert raw.squares_CD is not None
    counts_C1 = raw.counts_C[:, None]
    sums_CD = (raw.sums_CD - counts_C1 * view.shift_F) / view.scale_F
    squares_CD = raw.squares_CD - 2 * view.shift_F * raw.sums_CD + counts_C1 * view.shift_F**2
    return Statistics(raw.counts_C, sums_CD, squares_CD / view.scale_F**2)


def variance(raw: Statistics, view: View, moments: Statistics | None) -> float:
    """Variance of all entries of all images on a view, before any random map.

    `moments` are those from which the view was reduced, None without a reduction.
    """
    count = float(raw.counts_C.sum())
    if view.components_FK is None or moments is None:
        after = moved(raw, view)
        assert after.squares_CD is not None
        entries = count * len(view.shift_F)
        spread = float(after.squares_CD.sum()) / entries - (float(after.sums_CD.sum()) / entries) ** 2
        return max(spread, 1e-12)
    assert moments.moments_DD is not None
    mean_D = moments.sums_CD.sum(0) / count
    covariance_DD = moments.moments_DD / count - np.outer(mean_D, mean_D)
    spread = np.einsum("dk,de,ek->", view.components_FK, covariance_DD, view.components_FK, optimize=True)
    return max(float(spread) / view.width, 1e-12)


# --- covariance ------------------------------------------------------------------------------


def within_classes(statistics: Statistics) -> Floats:
    """Covariance around the class means, each image weighted by its class's weight."""
    assert statistics.moments_DD is not None
    means_CD, weighted_C = statistics.means_CD, statistics.weighted_C
    share_C = weighted_C / weighted_C.sum()
    covariance_DD: Floats = (
        statistics.moments_DD / statistics.counts_C.sum() - (means_CD.T * share_C) @ means_CD
    )
    return covariance_DD


def shrunk(covariance_DD: Floats, shrinkage: float) -> Floats:
    """The covariance, a share of it replaced by its mean variance (Ledoit and Wolf 2004,
    doi:10.1016/S0047-259X(03)00096-4)."""
    width = len(covariance_DD)
    spread = np.trace(covariance_DD) / width
    result: Floats = (1 - shrinkage) * covariance_DD + shrinkage * spread * np.eye(width)
    return result


# --- heads -----------------------------------------------------------------------------------


def nearest_mean(statistics: Statistics) -> dict[str, Floats]:
    """Scores -½ ||x - mean||², up to what all classes share."""
    means_CD = statistics.means_CD
    return _linear(statistics, means_CD.T, -0.5 * (means_CD**2).sum(1))


def naive_bayes(statistics: Statistics, priors: str, smoothing: float) -> dict[str, Floats]:
    """Gaussian naive Bayes (scikit-learn's GaussianNB)."""
    assert statistics.squares_CD is not None
    counts_C, count = np.maximum(statistics.counts_C, 1), statistics.counts_C.sum()
    variances_CD = statistics.squares_CD / counts_C[:, None] - statistics.means_CD**2
    overall_D = statistics.squares_CD.sum(0) / count - (statistics.sums_CD.sum(0) / count) ** 2
    variances_CD = np.maximum(variances_CD, 0) + smoothing * max(float(overall_D.max()), 1e-30)
    variances_CD[~statistics.present_C] = 1.0
    return {
        "means": statistics.means_CD,
        "variances": variances_CD,
        "priors": _log_priors(statistics, priors),
    }


def lda(statistics: Statistics, priors: str, shrinkage: float) -> dict[str, Floats]:
    """Linear discriminant analysis (scikit-learn's, solver lsqr).

    For equal priors the second moments must be weighted by `balanced`.
    """
    means_CD, covariance_DD = statistics.means_CD, shrunk(within_classes(statistics), shrinkage)
    weights_DC = np.asarray(np.linalg.lstsq(covariance_DD, means_CD.T, rcond=None)[0], np.float64)
    bias_C = -0.5 * (means_CD.T * weights_DC).sum(0) + _log_priors(statistics, priors)
    return _linear(statistics, weights_DC, bias_C)


def ridge(statistics: Statistics, alpha: float) -> dict[str, Floats]:
    """Least squares on -1 and 1 per class (scikit-learn's RidgeClassifier); the bias is not penalised."""
    assert statistics.moments_DD is not None
    weighted_C = statistics.weighted_C
    total = weighted_C.sum()
    sums_CD = statistics.means_CD * weighted_C[:, None]
    mean_D, aims_C = sums_CD.sum(0) / total, 2 * weighted_C / total - 1
    centred_DD = statistics.moments_DD - total * np.outer(mean_D, mean_D)
    targets_DC = (2 * sums_CD - sums_CD.sum(0)).T - total * np.outer(mean_D, aims_C)
    weights_DC = np.linalg.solve(centred_DD + alpha * np.eye(len(mean_D)), targets_DC)
    return _linear(statistics, weights_DC, aims_C - mean_D @ weights_DC)


def linear_from(statistics: Statistics, points_PC: Floats) -> dict[str, Floats]:
    """The head at the end of an iterated search; the last row of `points_PC` is the bias."""
    return _linear(statistics, points_PC[:-1], points_PC[-1])


def _linear(statistics: Statistics, weights_DC: Floats, bias_C: Floats) -> dict[str, Floats]:
    present_C = statistics.present_C
    return {
        "weights": np.ascontiguousarray(np.where(present_C, weights_DC, 0.0)),
        "bias": np.where(present_C, bias_C, ABSENT),
    }


def _log_priors(statistics: Statistics, priors: str) -> Floats:
    present_C = statistics.present_C
    counts_C = np.maximum(statistics.counts_C, 1) if priors == "counted" else np.ones(len(present_C))
    return np.where(present_C, np.log(counts_C / counts_C[present_C].sum()), ABSENT)


def bound(statistics: Statistics, c: float, curvature: float, *, penalised_bias: bool) -> Solve:
    """Solves with the largest curvature that 1/2 ||w||² + c x (sum of losses) has anywhere.

    `curvature` is that of one image's loss along its score: 2 for the squared hinge, 1/2 for the
    multinomial logistic loss (Böhning 1992, doi:10.1007/BF00048682).
    """
    assert statistics.moments_DD is not None
    width = len(statistics.moments_DD)
    sums_D = statistics.means_CD.T @ statistics.weighted_C
    total_PP = np.zeros((width + 1, width + 1))
    total_PP[:width, :width] = statistics.moments_DD
    total_PP[:width, width] = total_PP[width, :width] = sums_D
    total_PP[width, width] = statistics.weighted_C.sum()
    total_PP *= c * curvature
    penalty_P = np.ones(width + 1)
    penalty_P[-1] = 1.0 if penalised_bias else 1e-6
    total_PP[np.diag_indices(width + 1)] += penalty_P
    inverse_PP = np.linalg.inv(total_PP)
    return lambda x: inverse_PP @ x
