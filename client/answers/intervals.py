"""Replicates of a site's test patients for the final test, if its policy lets them leave.

The random number of a patient follows from a secret of the site and from the name of the patient, so it is the same in
every study, and no other person can draw it.
"""

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from client.config import PolicyConfig
from common.metrics import Score
from common.metrics.auroc import placements
from common.metrics.counts import places
from common.metrics.replicates import NUM_REPLICATES, Replicates, least_patients, num_columns, replicates

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


def of_test(
    score: Score,
    probabilities_NC: Floats,
    labels_N: Numbers,
    patients_N: Sequence[str],
    images_N: Sequence[str],
    *,
    secret: bytes,
    num_bins: int | None,
) -> Replicates | None:
    """Replicates of the images of `score`; None of fewer patients than `least_patients`. `images_N` name the images."""
    num_classes = probabilities_NC.shape[1]
    names, patient_N = np.unique(np.asarray(patients_N, dtype=str), return_inverse=True)
    if len(names) < least_patients(num_classes):
        return None
    values_GV = patient_values(score, probabilities_NC, labels_N, patient_N, num_bins)
    multipliers_GR = np.stack([_multipliers(secret, str(name)) for name in names])
    images = sorted(f"{label} {image}" for label, image in zip(labels_N.tolist(), images_N, strict=True))
    return replicates(values_GV, multipliers_GR, _keyed(secret, "test set", *images).hex()[:16])


def may_leave(policy: PolicyConfig) -> bool:
    """Whether the policy lets replicates leave; a score without cells of few patients is no score of all patients."""
    return policy.intervals and policy.scores and policy.min_score_cell is None


def patient_values(
    score: Score, probabilities_NC: Floats, labels_N: Numbers, patient_N: Numbers, num_bins: int | None
) -> Floats:
    """(G, V): by patient and class right answers, images and predictions, and N times the part in the macro AUROC.

    `patient_N` numbers the patients from 0.
    """
    num_images, num_classes = probabilities_NC.shape
    predicted_N = probabilities_NC.argmax(axis=1)
    values_GV = np.zeros((int(patient_N.max(initial=-1)) + 1, num_columns(num_classes)))
    right_N = predicted_N == labels_N
    np.add.at(values_GV, (patient_N[right_N], labels_N[right_N]), 1)
    np.add.at(values_GV, (patient_N, num_classes + labels_N), 1)
    np.add.at(values_GV, (patient_N, 2 * num_classes + predicted_N), 1)
    np.add.at(
        values_GV[:, -1], patient_N, num_images * _auroc_parts(score, probabilities_NC, labels_N, num_bins)
    )
    return values_GV


def _auroc_parts(score: Score, probabilities_NC: Floats, labels_N: Numbers, num_bins: int | None) -> Floats:
    """(N,): the change of the macro AUROC if an image counted a little more, which sums to 0 over the images."""
    bins_NC = places(probabilities_NC, num_bins)
    parts_N, num_defined = np.zeros(len(labels_N)), 0
    for label, histogram_2B in enumerate(score.histogram_C2B):
        of_others_B, of_class_B, auroc = placements(histogram_2B)
        if np.isnan(auroc):
            continue
        num_defined += 1
        is_class_N, bins_N = labels_N == label, bins_NC[:, label]
        parts_N += np.where(
            is_class_N,
            (of_class_B[bins_N] - auroc) / histogram_2B[1].sum(),
            (of_others_B[bins_N] - auroc) / histogram_2B[0].sum(),
        )
    return parts_N / max(num_defined, 1)


def _multipliers(secret: bytes, patient: str) -> Floats:
    seed = int.from_bytes(_keyed(secret, "multipliers", patient), "big")
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(NUM_REPLICATES)


def _keyed(secret: bytes, *what: str) -> bytes:
    return hmac.new(secret, "\x1f".join(("intervals", *what)).encode(), hashlib.sha256).digest()
