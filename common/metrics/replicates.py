"""Replicates: what a site sends of its test patients so that figures get intervals.

Images of one patient are alike, so an interval must draw patients, not images. Accuracy, balanced accuracy, precision,
recall and F1 follow from three counts a class: right answers, images, predictions. Of each of its G patients a site has
these counts, and the patient's part in the site's AUROC. It draws a number z from the standard normal distribution for
every patient and sends the sum of z times the patient's centred counts, with NUM_REPLICATES such draws: the multiplier
bootstrap (van der Vaart and Wellner 1996, Weak Convergence and Empirical Processes, 3.6).

Whatever the patients' counts are, the rows are independent draws from a normal distribution with mean 0, whose
covariance is the patients' sum of products. So they tell no more than these sums do, and those only with noise: a
bootstrap that draws patients with known or with whole weights would tell more. The numbers z stay at the site and are
the same for the same patient in every study. So the rows of two models on the same patients belong together, and their
difference has an interval, too.

R replicates; V numbers: right answers, images and predictions by class (3C), and the AUROC.
"""

from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, StringConstraints, model_validator

from common.settings import Frozen

NUM_REPLICATES = 400
"""The standard deviation of as many normal draws is right within 3.5 % (1 / sqrt(2R))."""
DECIMALS = 3
_MOST = 1e12

_LEAST, _PATIENTS_A_NUMBER = 20, 2

Replicate = Annotated[float, Field(ge=-_MOST, le=_MOST, allow_inf_nan=False)]
TestSet = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
"""A keyed hash of a site's test images: equal in two studies only if the images are."""


class Replicates(Frozen):
    """Sums over a site's test patients, each with a random number of its own."""

    num_patients: Annotated[int, Field(ge=1, le=10**8)]
    """Patients (or lesions; images where neither is known) with test images."""
    test_set: TestSet
    sums: tuple[tuple[Replicate, ...], ...]
    """(R, V), each rounded to three decimals. The AUROC's column is times the number of images."""

    @model_validator(mode="after")
    def _shape(self) -> Self:
        widths = {len(row) for row in self.sums}
        if len(self.sums) != NUM_REPLICATES or len(widths) != 1:
            raise ValueError(f"found {len(self.sums)} replicates, expected {NUM_REPLICATES} of one width")
        return self

    @property
    def sums_RV(self) -> npt.NDArray[np.float64]:
        """The sums as an array."""
        return np.array(self.sums, np.float64)

    @property
    def num_columns(self) -> int:
        """V."""
        return len(self.sums[0])


def num_columns(num_classes: int) -> int:
    """V: three counts a class, and the AUROC."""
    return 3 * num_classes + 1


def least_patients(num_classes: int) -> int:
    """Fewest patients of whom a site sends replicates: twice as many as numbers in a row, since the products of fewer
    patients than numbers nearly are the patients.
    """
    return max(_LEAST, _PATIENTS_A_NUMBER * num_columns(num_classes))


def replicates(
    values_GV: npt.NDArray[np.float64], multipliers_GR: npt.NDArray[np.float64], test_set: str
) -> Replicates:
    """Replicates of the patients' numbers; `multipliers_GR` are standard normal."""
    num_patients = len(values_GV)
    # The covariance of a sum over G patients drawn again: G / (G - 1) times the sum of centred products.
    centred_GV = (values_GV - values_GV.mean(axis=0)) * np.sqrt(num_patients / (num_patients - 1))
    sums_RV = np.round(multipliers_GR.T @ centred_GV, DECIMALS) + 0.0  # no -0.0
    return Replicates(
        num_patients=num_patients, test_set=test_set, sums=tuple(tuple(row) for row in sums_RV.tolist())
    )
