"""Sums over a site's training features: all that leaves the site for a federated head.

Every function turns rows, one an image, into arrays whose shapes depend on the network, the classes and
the map, never on how many images there are.

N images, D features of the view, C classes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.errors import PolicyRefusal
from common.heads import Floats, softmax, triangle
from common.wire import Objective, ViewRequest


def statistics(
    mapped_ND: Floats, labels_N: npt.NDArray[np.int64], request: ViewRequest
) -> dict[str, npt.NDArray[np.floating]]:
    """Sums per class and what else is requested: `sums` (C, D), `squares` (C, D), `moments` (D (D + 1) / 2)."""
    weights_C = np.asarray(request.class_weights)
    of_class_CN = (labels_N == np.arange(len(weights_C))[:, None]).astype(np.float64)
    sums: dict[str, npt.NDArray[np.floating]] = {"sums": of_class_CN @ mapped_ND}
    if request.squares:
        sums["squares"] = of_class_CN @ mapped_ND**2
    if request.moments != "none":
        weighted_ND = mapped_ND * weights_C[labels_N][:, None]
        sums["moments"] = triangle(weighted_ND.T @ mapped_ND).astype(request.moments)
    return sums


def largest_share(mapped_ND: Floats, labels_N: npt.NDArray[np.int64], groups_N: Sequence[str]) -> float:
    """Largest share of one patient in the length of a class's features, each patient's images at their mean length.

    About one in the number of the class's patients for features of a network that treats them alike. Near 1 for weights
    or a view under which one image is much longer than all others: the sum would be that image's features.
    """
    lengths_N = np.linalg.norm(mapped_ND, axis=1)
    _, groups = np.unique(np.asarray(groups_N, dtype=str), return_inverse=True)
    largest = 0.0
    for label in np.unique(labels_N):
        of_class = labels_N == label
        images = np.bincount(groups[of_class])
        totals = np.bincount(groups[of_class], weights=lengths_N[of_class])
        means = totals[images > 0] / images[images > 0]
        if len(means) > 1 and means.sum() > 0:
            largest = max(largest, float(means.max() / means.sum()))
    return largest


def gradient(
    mapped_ND: Floats,
    labels_N: npt.NDArray[np.int64],
    points_PC: Floats,
    objective: Objective,
    groups_N: Sequence[str],
    min_cell: int | None,
) -> tuple[Floats, Floats]:
    """Losses (C for a machine per class, 1 for the softmax) and gradients (D + 1, C) summed over images.

    Squared hinge: w max(0, 1 - y s)². Softmax: w times the cross-entropy. `s = x W + b`, `w` the weight of
    the image's class, which is above 0 for every class with images. Raises PolicyRefusal if one patient or lesion
    would weigh more than 1 / `min_cell` in a gradient (dominance rule of statistical disclosure control): with points
    chosen for it, a gradient is one image's features.
    """
    weights_N = np.asarray(objective.class_weights)[labels_N][:, None]
    scores_NC = mapped_ND @ points_PC[:-1] + points_PC[-1]
    is_class_NC = labels_N[:, None] == np.arange(points_PC.shape[1])
    if objective.loss == "squared_hinge":
        signs_NC = np.where(is_class_NC, 1.0, -1.0)
        short_NC = np.maximum(0.0, 1 - signs_NC * scores_NC)
        losses = (weights_N * short_NC**2).sum(axis=0)
        slopes_NC = -2 * weights_N * signs_NC * short_NC
    else:
        probabilities_NC = softmax(scores_NC)
        right_N = np.maximum(probabilities_NC[is_class_NC], 1e-300)
        losses = -(weights_N[:, 0] * np.log(right_N)).sum(keepdims=True)
        slopes_NC = weights_N * (probabilities_NC - is_class_NC)
    _refuse_dominated(slopes_NC, groups_N, min_cell)
    return losses, np.vstack([mapped_ND.T @ slopes_NC, slopes_NC.sum(axis=0)])


def _refuse_dominated(slopes_NC: Floats, groups_N: Sequence[str], min_cell: int | None) -> None:
    """The slope of an image is its weight in a column; a column without any weight tells nothing."""
    if min_cell is None or not len(slopes_NC):
        return
    _, places_N = np.unique(np.asarray(groups_N, dtype=object).astype(str), return_inverse=True)
    weights_GC = np.zeros((int(places_N.max()) + 1, slopes_NC.shape[1]))
    np.add.at(weights_GC, places_N, np.abs(slopes_NC))
    total_C = weights_GC.sum(axis=0)
    shares_C = weights_GC.max(axis=0)[total_C > 0] / total_C[total_C > 0]
    if len(shares_C) and shares_C.max() > 1 / min_cell:
        raise PolicyRefusal(
            f"one patient or lesion would weigh {shares_C.max():.0%} in a gradient, at most {1 / min_cell:.0%} by "
            f"this site's policy (min_cell {min_cell})",
            reason="min_cell: a gradient would be of too few patients",
        )
