"""Confusion matrices with noise: paid for and drawn once for a set of weights, and the same from then on.

A patient counts as one, with the mean over its images, so it changes a matrix by a Euclidean length of 1 at most, and k
matrices of one answer by the root of k. The noise would leave cells below 0. Each row is moved to the nearest one
without such cells that has the same sum; the sum itself is not moved but where it is below 0. So the figures lean to
neither side as they would if each cell were cut off at 0. What is done to numbers with noise costs nothing.

N images, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.privacy.budget import Budget, scores_charge
from client.training.private.secure_random import SecureRandom
from common.config import StudyConfig
from common.files import read_json, write_json
from common.metrics import Score, empty
from common.settings import Frozen

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
FILE = "noisy-scores.json"


class NoisyScores(Frozen):
    """The file, in the study's folder: what was sent, by question and by what was scored."""

    scores: dict[str, dict[str, Score]]


def noisy_scores(
    study: StudyConfig, question: str, matrices: Mapping[str, Floats], budget: Budget, folder: Path
) -> dict[str, Score]:
    """Scores by what was scored. Raises PolicyRefusal and StorageError.

    What was sent for the same question is sent again, whatever the matrices are now.
    """
    assert study.privacy is not None
    assert study.privacy.scores is not None
    kept = read_json(folder / FILE, NoisyScores) or NoisyScores(scores={})
    if (sent := kept.scores.get(question)) is not None and sent.keys() == matrices.keys():
        return sent
    budget.charge(study, question, scores_charge(study.privacy.scores))
    noise = study.noise_of_scores(study.sites.train[0], len(matrices))
    random = SecureRandom()
    drawn = {title: _score(matrix_CC, noise, random.normals) for title, matrix_CC in matrices.items()}
    write_json(folder / FILE, NoisyScores(scores={**kept.scores, question: drawn}))
    return drawn


def confusion_of_patients(probabilities_NC: Floats, labels_N: Numbers, patients_N: Sequence[str]) -> Floats:
    """Patients by true class (row) and predicted class (column); each counts 1 in all, shared by its images."""
    num_classes = probabilities_NC.shape[1]
    matrix_CC = np.zeros((num_classes, num_classes))
    _, places_N, images = np.unique(
        np.asarray(patients_N, dtype=str), return_inverse=True, return_counts=True
    )
    np.add.at(matrix_CC, (labels_N, probabilities_NC.argmax(axis=1)), 1 / images[places_N])
    return matrix_CC


def _score(matrix_CC: Floats, noise: float, normals: Callable[[int], Floats]) -> Score:
    noisy_CC = matrix_CC + noise * normals(matrix_CC.size).reshape(matrix_CC.shape)
    whole_CC = np.stack([whole(row_C) for row_C in noisy_CC])
    return empty(len(matrix_CC)).model_copy(update={"confusion_CC": whole_CC, "noise": noise})


def whole(row_C: Floats) -> Numbers:
    """The nearest row of numbers from 0 that has the same sum (Duchi et al. 2008, doi:10.1145/1390156.1390191), rounded
    so that the sum is, too.
    """
    total = max(0, round(float(row_C.sum())))
    if total == 0:
        return np.zeros(len(row_C), np.int64)
    falling_C = np.sort(row_C)[::-1]
    shifts_C = (np.cumsum(falling_C) - total) / np.arange(1, len(row_C) + 1)
    shift = shifts_C[np.flatnonzero(falling_C > shifts_C)[-1]]
    cells_C = np.maximum(row_C - shift, 0)
    floor_C: Numbers = np.floor(cells_C).astype(np.int64)
    missing = total - int(floor_C.sum())
    floor_C[np.argsort(floor_C - cells_C, kind="stable")[:missing]] += 1
    return floor_C
