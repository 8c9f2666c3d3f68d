"""Score cells of few patients: what a site keeps back of a score, if its policy has `min_score_cell`.

A cell is a true class and a predicted one. Images of a cell with fewer than k patients are left out of the whole
score, not masked in one table: all tables are then of the same images, and no difference of two of them is the cell.
The server knows how many images of each class there are. So what is left out of a class must be of k patients, too:
otherwise its smallest cell that is shown is left out as well, and so on (complementary suppression, Cox 1980,
doi:10.1080/01621459.1980.10477481).

In the histograms an image has no probability of its own. The images of a cell are put in groups of at least k
patients with similar probabilities, and each counts with the median of its group's patients (microaggregation,
Domingo-Ferrer and Mateo-Sanz 2002, doi:10.1109/69.979982). The median, because one patient moves a mean.

N images, C classes, M images of one cell.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from common.metrics import Score, count

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


def score(
    probabilities_NC: Floats,
    labels_N: Numbers,
    patients_N: Sequence[str],
    *,
    least: int,
    num_bins: int | None,
) -> Score:
    """Score in which every cell is of no patient or of at least `least`. `patients_N` are patients or lesions."""
    num_classes = probabilities_NC.shape[1]
    numbers_N = numbered(patients_N)
    predicted_N = probabilities_NC.argmax(axis=1)
    is_shown_N = np.zeros(len(labels_N), bool)
    grouped_NC = probabilities_NC.copy()
    for label in range(num_classes):
        for cell in shown_cells(np.flatnonzero(labels_N == label), predicted_N, numbers_N, least):
            is_shown_N[cell] = True
            for group in _groups(probabilities_NC[cell], numbers_N[cell], least):
                images = cell[group]
                grouped_NC[images] = _median(probabilities_NC[images], numbers_N[images])
    shown = np.flatnonzero(is_shown_N)
    of_class_N = grouped_NC[shown, labels_N[shown]]
    loss_sum = float(-np.log(np.maximum(of_class_N, _LEAST)).sum())
    left_out_C = np.bincount(labels_N[~is_shown_N], minlength=num_classes)
    return count(grouped_NC[shown], labels_N[shown], loss_sum, num_bins).model_copy(
        update={"left_out_C": tuple(left_out_C.tolist())}
    )


_LEAST = 1e-12
"""Smallest probability whose logarithm counts, as for heads."""


def numbered(patients_N: Sequence[str]) -> Numbers:
    """A number for each patient, in place of the name."""
    return np.unique(np.asarray(patients_N, dtype=str), return_inverse=True)[1].astype(np.int64)


def is_shown(
    predicted_N: Numbers, labels_N: Numbers, numbers_N: Numbers, least: int
) -> npt.NDArray[np.bool_]:
    """Which images the score counts. `numbers_N` are patients."""
    is_shown_N = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        for cell in shown_cells(np.flatnonzero(labels_N == label), predicted_N, numbers_N, least):
            is_shown_N[cell] = True
    return is_shown_N


def shown_cells(places_M: Numbers, kinds_N: Numbers, numbers_N: Numbers, least: int) -> list[Numbers]:
    """Of these images, those of each kind that are shown; what is left out is of no patient, or of enough.

    A kind below 0 is never shown.
    """
    cells = [places_M[kinds_N[places_M] == kind] for kind in np.unique(kinds_N[places_M])]
    # Those that are never shown come last. Largest first; of two that are equal, the kind that comes first.
    cells.sort(key=lambda cell: (kinds_N[cell[0]] < 0, -_patients(numbers_N[cell])))
    shown = [cell for cell in cells if kinds_N[cell[0]] >= 0 and _patients(numbers_N[cell]) >= least]
    left_out = cells[len(shown) :]
    while left_out and shown and _patients(numbers_N[np.concatenate(left_out)]) < least:
        left_out.append(shown.pop())
    return shown


def _groups(probabilities_MC: Floats, numbers_M: Numbers, least: int) -> Iterator[Numbers]:
    """Places of images with similar probabilities, at least `least` patients in each group."""
    # By the probability of the predicted class, then by the others: the same images in any order give the same groups.
    keys = (*probabilities_MC.T, probabilities_MC.max(axis=1))
    order = np.lexsort(keys)
    start = 0
    for end in range(1, len(order) + 1):
        rest = order[end:]
        if _patients(numbers_M[order[start:end]]) >= least and _patients(numbers_M[rest]) >= least:
            yield order[start:end]
            start = end
    yield order[start:]


def _median(probabilities_MC: Floats, numbers_M: Numbers) -> Floats:
    """Median over patients, each of whom counts once, with the mean of its images."""
    means = [probabilities_MC[numbers_M == number].mean(axis=0) for number in np.unique(numbers_M)]
    median_C: Floats = np.median(means, axis=0)
    return median_C


def _patients(numbers_M: Numbers) -> int:
    return len(np.unique(numbers_M))
