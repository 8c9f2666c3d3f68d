"""Scores of a head on a site's test images, compared with the network's own softmax, as counts.

Both classify the same images, so their difference has an interval of its own: whole groups (patients,
lesions) are drawn again, 1,000 times, with a fixed seed.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from client.governance import score_cells
from common.config.heads import SOFTMAX
from common.heads import Floats, softmax
from common.heads.result import HeadResult
from common.metrics import Score, count
from common.metrics.paired import group_sums, pair

_DRAWS, _SEED = 1000, 0
_LEAST = 1e-12


def of_softmax(
    logits_NC: Floats,
    labels_N: npt.NDArray[np.int64],
    groups_N: Sequence[str],
    num_bins: int | None,
    min_score_cell: int | None = None,
) -> HeadResult:
    """The network's own score."""
    if min_score_cell is not None:
        few = _few(softmax(logits_NC), labels_N, groups_N, num_bins, min_score_cell)
        return HeadResult(title=SOFTMAX, score=few)
    return HeadResult(
        title=SOFTMAX,
        score=count(softmax(logits_NC), labels_N, _loss(softmax(logits_NC), labels_N), num_bins),
    )


def beside(
    title: str,
    probabilities_NC: Floats,
    logits_NC: Floats,
    labels_N: npt.NDArray[np.int64],
    groups_N: Sequence[str],
    num_bins: int | None,
    min_score_cell: int | None = None,
) -> HeadResult:
    """A head's score and its comparison; problem `not_finite` if a probability is not a finite number.

    With `min_score_cell` there is no comparison: its counts are cells of few patients.
    """
    if not np.all(np.isfinite(probabilities_NC)):
        return HeadResult(title=title, problem="not_finite")
    if min_score_cell is not None:
        few = _few(probabilities_NC, labels_N, groups_N, num_bins, min_score_cell)
        return HeadResult(title=title, score=few)
    head_right_N = probabilities_NC.argmax(1) == labels_N
    softmax_right_N = logits_NC.argmax(1) == labels_N
    num_classes = logits_NC.shape[1]
    compared = softmax_right_N, head_right_N, labels_N, groups_N, num_classes
    return HeadResult(
        title=title,
        score=count(probabilities_NC, labels_N, _loss(probabilities_NC, labels_N), num_bins),
        paired=pair(*compared),
        interval=bootstrap(group_sums(*compared)) if len(labels_N) else None,
    )


def bootstrap(values_GV: npt.NDArray[np.int64]) -> tuple[float, float]:
    """95 % percentile interval of the gain in balanced accuracy (Efron 1979), groups drawn again.

    `values_GV` are `paired.group_sums`: differences by class, then images by class.
    """
    num_groups, width = values_GV.shape
    draws = np.random.default_rng(_SEED)
    times_RG = draws.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=_DRAWS)
    sums_RV = times_RG @ values_GV
    gains_RC, images_RC = sums_RV[:, : width // 2], sums_RV[:, width // 2 :]
    has_RC = images_RC > 0
    gains_R = np.where(has_RC, gains_RC / np.maximum(images_RC, 1), 0).sum(1) / has_RC.sum(1)
    low, high = np.percentile(gains_R, [2.5, 97.5])
    return float(low), float(high)


def _few(
    probabilities_NC: Floats,
    labels_N: npt.NDArray[np.int64],
    groups_N: Sequence[str],
    num_bins: int | None,
    least: int,
) -> Score:
    return score_cells.score(probabilities_NC, labels_N, groups_N, least=least, num_bins=num_bins)


def _loss(probabilities_NC: Floats, labels_N: npt.NDArray[np.int64]) -> float:
    """Summed cross-entropy; a head may be sure of the wrong class, so it is bounded."""
    right_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    return float(-np.log(np.maximum(right_N, _LEAST)).sum())
