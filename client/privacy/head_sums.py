"""Sums for classical heads with noise: paid for and drawn once for a set of weights, and the same from then on.

The features of an image are shrunk to a bound. A patient adds the mean of what its images would add, so it changes each
of the arrays by a Euclidean length of 1 at most, in units of the bound, and all b of them together by the root of b. Of
the products of two features each is twice in the matrix; the triangle is measured as the matrix is, so that its places
off the diagonal need less noise.

N images, F features, C classes, T = F (F + 1) / 2.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.privacy.budget import Budget, heads_charge, heads_question
from client.training.private.secure_random import SecureRandom
from common.config import NoisySums, StudyConfig
from common.heads import Floats, triangle
from common.heads.needs import noisy_blocks
from common.heads.noise import deviation, off_diagonal
from common.weights import Array, load_file, save_file

FILE = "noisy-head-sums.safetensors"


def noisy_sums(
    study: StudyConfig,
    weights_digest: str,
    features_NF: npt.NDArray[np.floating],
    labels_N: npt.NDArray[np.int64],
    groups_N: Sequence[str],
    budget: Budget,
    folder: Path,
) -> dict[str, Array]:
    """`counts`, `sums` and `moments` of the site's training features. Raises PolicyRefusal and StorageError.

    What was sent for these weights is sent again: many answers would have less noise in their mean.
    """
    assert study.heads is not None
    assert study.privacy is not None
    assert study.privacy.heads is not None
    question = heads_question(weights_digest)
    if (kept := _kept(folder / FILE, question)) is not None:
        return kept
    budget.charge(study, question, heads_charge(study.privacy.heads))
    blocks = noisy_blocks(study.heads)
    settings = study.privacy.heads
    exact = sums_of_patients(
        features_NF, labels_N, groups_N, len(study.classes), settings.max_feature_norm, blocks
    )
    noisy = with_noise(exact, settings, SecureRandom())
    save_file(folder / FILE, noisy, {"question": question})
    return noisy


def _kept(path: Path, question: str) -> dict[str, Array] | None:
    if not path.is_file():
        return None
    arrays, about = load_file(path)
    return dict(arrays) if about.get("question") == question else None


def sums_of_patients(
    features_NF: npt.NDArray[np.floating],
    labels_N: npt.NDArray[np.int64],
    groups_N: Sequence[str],
    num_classes: int,
    bound: float,
    blocks: Sequence[str],
) -> dict[str, Floats]:
    """The arrays without noise, in units of the features. `groups_N` are the images' patients."""
    clipped_NF = shrunk(features_NF, bound)
    _, patients_N, images = np.unique(
        np.asarray(groups_N, dtype=str), return_inverse=True, return_counts=True
    )
    weights_N = 1.0 / images[patients_N]
    of_class_CN = (labels_N == np.arange(num_classes)[:, None]) * weights_N
    arrays = {"counts": of_class_CN.sum(axis=1), "sums": of_class_CN @ clipped_NF}
    if "moments" in blocks:
        arrays["moments"] = triangle((clipped_NF * weights_N[:, None]).T @ clipped_NF)
    return arrays


def shrunk(features_NF: npt.NDArray[np.floating], bound: float) -> Floats:
    """Each row at its length or, if that is more, at the bound."""
    rows_NF = np.asarray(features_NF, np.float64)
    lengths_N1 = np.linalg.norm(rows_NF, axis=1, keepdims=True)
    result: Floats = rows_NF * np.minimum(1.0, bound / np.maximum(lengths_N1, 1e-300))
    return result


def with_noise(exact: Mapping[str, Floats], settings: NoisySums, random: SecureRandom) -> dict[str, Array]:
    """Each array with normal noise, as large as all of them together need it."""
    noisy: dict[str, Array] = {}
    for name, array in exact.items():
        spread = deviation(settings, name, len(exact))
        drawn = random.normals(array.size).reshape(array.shape) * spread
        if name == "moments":
            drawn *= off_diagonal(array.size)
        # The last digits of a float say more than the number: they depend on what was added, and in which order.
        step = 2.0 ** math.floor(math.log2(spread) - 20)
        noisy[name] = np.round((array + drawn) / step) * step
    return noisy
