"""Counts of a test by subgroup, and what a site keeps back of them.

A row is a true class within a subgroup: women with melanoma. A row of fewer than k patients is left out. The server
has the score of all images, too, and the difference between it and the rows is the images that are in none of them. So
these are of no patient or of k, and where they are not, the smallest row that is shown goes as well (complementary
suppression, Cox 1980, doi:10.1080/01621459.1980.10477481). Images whose subgroup is not known are among them, so the
server cannot tell a row that is left out from values that are not known.

With `policy.min_score_cell` the rows are of the images that the score counts, and the same holds for each cell of a
row, with the number of that rule.

N images, C classes, V values of an attribute. A place is a value's number, -1 where it is not known.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.governance.score_cells import is_shown, numbered, shown_cells
from common.metrics.subgroups import SubgroupCounts

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoredImages:
    """Test images as the model saw them."""

    predicted_N: Numbers
    labels_N: Numbers
    patients_N: list[str]
    """Patients or lesions."""


@dataclass(frozen=True)
class Placed:
    """The images' values of one attribute."""

    places_N: Numbers
    num_values: int


def counts(
    tested: ScoredImages,
    attributes: Mapping[str, Placed],
    num_classes: int,
    *,
    least: int,
    least_cell: int | None,
) -> dict[str, SubgroupCounts]:
    """By attribute. `least` patients make a row, `least_cell` a cell of it."""
    numbers_N = numbered(tested.patients_N)
    counted_N = np.arange(len(tested.labels_N))
    if least_cell is not None:
        counted_N = np.flatnonzero(is_shown(tested.predicted_N, tested.labels_N, numbers_N, least_cell))
    found = {}
    for name, placed in attributes.items():
        confusion_VCC = np.zeros((placed.num_values, num_classes, num_classes), np.int64)
        for label in range(num_classes):
            of_class = counted_N[tested.labels_N[counted_N] == label]
            for row in _rows(of_class, placed.places_N, tested.predicted_N, numbers_N, least, least_cell):
                np.add.at(confusion_VCC[:, label], (placed.places_N[row], tested.predicted_N[row]), 1)
        found[name] = SubgroupCounts(confusion_VCC=confusion_VCC)
    return found


def _rows(
    of_class: Numbers,
    places_N: Numbers,
    predicted_N: Numbers,
    numbers_N: Numbers,
    least: int,
    least_cell: int | None,
) -> list[Numbers]:
    """Of the images of one class, those of each row that is shown."""
    places_N = places_N.copy()
    if least_cell is not None:
        for predicted in np.unique(predicted_N[of_class]):
            column = of_class[predicted_N[of_class] == predicted]
            kept = np.concatenate(
                [np.zeros(0, np.int64), *shown_cells(column, places_N, numbers_N, least_cell)]
            )
            places_N[np.setdiff1d(column, kept)] = -1
    return shown_cells(of_class, places_N, numbers_N, least)
