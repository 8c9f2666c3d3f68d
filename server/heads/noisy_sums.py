"""Sums with noise, made usable: statistics of the sites' features in a study with privacy.

Nothing here looks at images, so nothing costs privacy. How much noise there is follows from the study, and each rule
is stated in terms of it:

- a class with fewer patients than twice the noise on their number counts as absent;
- a class mean is moved towards the mean of all, the more the larger the noise is beside their distance (the positive
  part of James and Stein 1961); so a class that noise hides is where all are;
- second moments within the classes are made positive semi-definite, and the largest eigenvalue that the noise has by
  itself is added to all of theirs. A direction in which there is only noise then has little weight. (For least squares
  a ridge of that order is the rule of Wang 2018, arXiv:1803.02596);
- a class is given the second moments around its mean that all classes have together.

A patient counts once, whatever the number of its images. C classes, F features, D of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from common.config import NoisySums
from common.heads import Floats, View, identity, square
from common.heads.noise import deviation, edge
from common.weights import Arrays
from server.heads.solvers import Statistics
from server.heads.solvers import balanced as balanced_weights
from server.heads.sums import weighed


@dataclass(frozen=True)
class Noisy:
    """Sums of all sites."""

    settings: NoisySums
    num_arrays: int
    spread: float
    """Root of the summed squares of the sites' factors: noise of all of them in units of one site's."""
    counts_C: Floats
    sums_CF: Floats
    moments_FF: Floats | None = None

    @property
    def present_C(self) -> npt.NDArray[np.bool_]:
        """Classes that have more patients than noise."""
        return self.counts_C > 2 * self._deviation("counts")

    def view(self, num_components: int | None) -> View:
        """The features as they are, or their leading components around the mean of all."""
        if num_components is None or self.moments_FF is None:
            return identity(self.sums_CF.shape[1])
        _, vectors_FF = np.linalg.eigh(self._scatter_FF)
        components_FK = vectors_FF[:, ::-1][:, :num_components]
        signs_K = np.sign(components_FK[np.abs(components_FK).argmax(0), np.arange(components_FK.shape[1])])
        return View(
            self._mean_F, np.ones(len(self._mean_F)), components_FK * np.where(signs_K == 0, 1, signs_K)
        )

    def statistics(self, view: View, *, balanced: bool) -> Statistics:
        """What the exact solvers take, on a view of this file. `balanced`: each class weighs the same."""
        counts_C = np.where(self.present_C, self.counts_C, 0.0)
        mean_D = view.of(self._mean_F[None])[0]
        means_CD = mean_D + self._differences_CD(view, mean_D)
        weights_C = balanced_weights(counts_C) if balanced else np.ones(len(counts_C))
        plain = Statistics(counts_C, means_CD * counts_C[:, None], weights_C=weights_C)
        if self.moments_FF is None:
            return plain
        within_DD = self._within_DD(view, counts_C, means_CD - mean_D)
        total = counts_C.sum()
        variances_D = np.maximum(np.diagonal(within_DD), 0) + self._deviation("moments")
        return Statistics(
            counts_C,
            plain.sums_CD,
            squares_CD=counts_C[:, None] * (means_CD**2 + variances_D / total),
            moments_DD=(means_CD.T * plain.weighted_C) @ means_CD
            + plain.weighted_C.sum() / total * self._repaired(within_DD),
            weights_C=weights_C,
        )

    def _differences_CD(self, view: View, mean_D: Floats) -> Floats:
        """Class means less the mean of all, on a view whose components are of length 1."""
        present_C1 = self.present_C[:, None]
        counts_C1 = np.where(present_C1, self.counts_C[:, None], 1.0)
        found_CD = np.where(present_C1, view.of(self.sums_CF / counts_C1) - mean_D, 0.0)
        noise_C1 = view.width * (self._deviation("sums") / counts_C1) ** 2
        squares_C1 = (found_CD**2).sum(axis=1, keepdims=True)
        kept_C1 = np.maximum(0.0, 1 - noise_C1 / np.maximum(squares_C1, 1e-300))
        result: Floats = found_CD * kept_C1
        return result

    def _within_DD(self, view: View, counts_C: Floats, differences_CD: Floats) -> Floats:
        scatter_DD = self._scatter_FF
        if view.components_FK is not None:
            scatter_DD = view.components_FK.T @ scatter_DD @ view.components_FK
        result: Floats = scatter_DD - (differences_CD.T * counts_C) @ differences_CD
        return result

    def _repaired(self, within_DD: Floats) -> Floats:
        values_D, vectors_DD = np.linalg.eigh((within_DD + within_DD.T) / 2)
        ridge = edge(self.settings, len(values_D), self.num_arrays) * self.spread
        result: Floats = (vectors_DD * (np.maximum(values_D, 0) + ridge)) @ vectors_DD.T
        return result

    @cached_property
    def _mean_F(self) -> Floats:
        """Mean of all patients, no longer than a feature can be."""
        of_all_F = self.sums_CF[self.present_C].sum(axis=0) / self.counts_C[self.present_C].sum()
        length = float(np.linalg.norm(of_all_F))
        mean_F: Floats = of_all_F * min(1.0, self.settings.max_feature_norm / max(length, 1e-300))
        return mean_F

    @cached_property
    def _scatter_FF(self) -> Floats:
        """Second moments around the mean of all."""
        assert self.moments_FF is not None
        count = self.counts_C[self.present_C].sum()
        scatter_FF: Floats = self.moments_FF - count * np.outer(self._mean_F, self._mean_F)
        return scatter_FF

    def _deviation(self, name: str) -> float:
        return deviation(self.settings, name, self.num_arrays) * self.spread


def added(parts: Sequence[Arrays], factors: Sequence[float], settings: NoisySums) -> Noisy:
    """Sums over sites, each weighed by its factor."""
    total = {name: weighed((part[name] for part in parts), factors) for name in parts[0]}
    width = total["sums"].shape[1]
    return Noisy(
        settings,
        len(total),
        float(np.linalg.norm(factors)),
        total["counts"],
        total["sums"],
        square(total["moments"], width) if "moments" in total else None,
    )


def wrong(arrays: Arrays, settings: NoisySums) -> str | None:
    """Why no patients with the study's noise have these sums, or None.

    Noise beyond eight standard deviations does not occur.
    """
    counts_C, sums_CF = arrays["counts"], arrays["sums"]
    width, bound = sums_CF.shape[1], settings.max_feature_norm

    def room(name: str, size: int) -> float:
        return float(deviation(settings, name, len(arrays)) * (size**0.5 + 8))

    if (counts_C < -room("counts", 1)).any():
        return "counts has an entry that is further below 0 than noise goes"
    most_C = bound * (np.maximum(counts_C, 0) + room("counts", 1))
    if (np.linalg.norm(sums_CF, axis=1) > most_C + room("sums", width)).any():
        return "sums are longer than so many patients and the noise can make them"
    if (triangle_T := arrays.get("moments")) is None:
        return None
    if triangle_T.shape != (width * (width + 1) // 2,):
        return f"moments has {triangle_T.size} entries, expected {width * (width + 1) // 2}"
    patients = float(np.maximum(counts_C, 0).sum()) + len(counts_C) * room("counts", 1)
    length = float(np.linalg.norm(square(triangle_T, width)))
    if length > bound**2 * patients + room("moments", width * (width + 1) // 2):
        return "moments are larger than so many patients and the noise can make them"
    return None
