"""Bounds on a site's sums: what no images can give is refused.

A site's sums are its own word, and they are added to those of the others. They cannot be checked against the
images, but they can be checked against each other: by Cauchy and Schwarz the square of a sum is at most the count
times the sum of squares, and second moments around the class means are positive semi-definite. Rounding is
allowed for.

C classes, D features of a view.
"""

from collections.abc import Sequence

import numpy as np

from common.heads import Floats, square
from common.weights import Array, Arrays
from common.wire import Objective, ViewRequest

LARGEST = 1e100
"""Largest entry of a sum, whose square is still a finite number."""

LARGEST_LOSS = 700.0
"""Largest cross-entropy of one image: sites take no logarithm of less than 1e-300."""

_ROUNDING = {"float64": 1e-9, "float32": 1e-6}
"""Of one entry of the second moments, relative to its row and column, and well above what occurs."""

_SLACK = 1e-6


def wrong_sums(arrays: Arrays, request: ViewRequest, counts_C: Sequence[int]) -> str | None:
    """Why no images by class, as many as `counts_C`, have these sums on a view, or None."""
    name = f"statistics/{request.name}"
    counts = np.asarray(counts_C, np.float64)
    sums_CD = np.asarray(arrays[f"{name}/sums"], np.float64)
    largest = _largest_entry(request)
    if (wrong := _too_large(f"{name}/sums", sums_CD)) is not None:
        return wrong
    if request.fourier is not None and (np.abs(sums_CD) > (1 + _SLACK) * largest * counts[:, None]).any():
        return f"{name}/sums are larger than {int(counts.sum())} images can make them on this view"
    if (squares := arrays.get(f"{name}/squares")) is not None and request.squares:
        squares_CD = np.asarray(squares, np.float64)
        if (wrong := _too_large(f"{name}/squares", squares_CD)) is not None:
            return wrong
        if (squares_CD < 0).any():
            return f"{name}/squares has entries below 0"
        if (sums_CD**2 > (1 + _SLACK) * counts[:, None] * squares_CD).any():
            return f"{name}/sums are too large beside its squares: no {int(counts.sum())} images have both"
        if (squares_CD[counts == 0] > 0).any():
            return f"{name}/squares has entries above 0 for a class without images"
    if request.moments == "none":
        return None
    return _wrong_moments(name, arrays[f"{name}/moments"], sums_CD, counts, request)


def _wrong_moments(
    name: str, triangle_T: Array, sums_CD: Floats, counts_C: Floats, request: ViewRequest
) -> str | None:
    weights_C, width = np.asarray(request.class_weights), sums_CD.shape[1]
    moments_DD = square(triangle_T, width)
    if (wrong := _too_large(f"{name}/moments", moments_DD)) is not None:
        return wrong
    diagonal_D = np.diagonal(moments_DD)
    if (diagonal_D < 0).any():
        return f"{name}/moments has a sum of squares below 0"
    images = float((weights_C * counts_C).sum())
    if (diagonal_D > (1 + _SLACK) * _largest_entry(request) ** 2 * images).any():
        return f"{name}/moments are larger than {int(counts_C.sum())} images can make them on this view"
    share_C = np.divide(weights_C, counts_C, out=np.zeros_like(counts_C), where=counts_C > 0)
    moments_DD -= (sums_CD.T * share_C) @ sums_CD
    scale_D = np.sqrt(np.where(diagonal_of(triangle_T) > 0, diagonal_of(triangle_T), 1.0))
    moments_DD /= scale_D[:, None]
    moments_DD /= scale_D
    moments_DD[np.diag_indices(width)] += width * _ROUNDING[request.moments]
    try:
        np.linalg.cholesky(moments_DD)
    except np.linalg.LinAlgError:
        return (
            f"{name}/moments are not positive semi-definite around the class means: no {int(counts_C.sum())} images "
            "have them"
        )
    return None


def wrong_gradient(
    losses: Array, slopes_PC: Array, objective: Objective, counts_C: Sequence[int], spread_D: Floats | None
) -> str | None:
    """Why no images by class, as many as `counts_C`, have these losses and gradients, or None.

    `spread_D` are the site's own sums of squares on the view, each image weighted by its class's weight; None if
    they are not known.
    """
    weighted_C = np.asarray(objective.class_weights) * np.asarray(counts_C, np.float64)
    images = float(weighted_C.sum())
    if (losses < 0).any():
        return f"losses/{objective.name} has entries below 0"
    if objective.loss == "softmax":
        if losses[0] > LARGEST_LOSS * images:
            return f"losses/{objective.name} is {losses[0]:.4g}, more than {images:.4g} images can have"
        bias_C, room = slopes_PC[-1], _SLACK * images
        if (bias_C < -weighted_C - room).any() or (bias_C > images - weighted_C + room).any():
            return f"gradients/{objective.name} has a bias that {images:.4g} images cannot have"
        squared_slopes_C: Floats = np.full(len(weighted_C), images)
    else:
        with np.errstate(over="ignore"):
            squared_slopes_C = 4 * np.asarray(losses, np.float64)
            if (slopes_PC[-1] ** 2 > (1 + _SLACK) * images * squared_slopes_C).any():
                return f"gradients/{objective.name} has a bias that is too large beside its losses"
    if spread_D is None:
        return None
    with np.errstate(over="ignore"):
        most_DC = spread_D[:, None] * squared_slopes_C
        if (slopes_PC[:-1] ** 2 > (1 + 1e-4) * most_DC).any():
            return f"gradients/{objective.name} is too large beside the site's own sums of squares"
    return None


def diagonal_of(triangle_T: Array) -> Floats:
    """Diagonal of a symmetric matrix from its lower half (`common.heads.triangle`)."""
    width = int(((8 * triangle_T.size + 1) ** 0.5 - 1) / 2)
    places = np.arange(width)
    result: Floats = np.asarray(triangle_T[places * (places + 3) // 2], np.float64)
    return result


def _too_large(name: str, array: Array) -> str | None:
    largest = float(np.abs(array).max(initial=0.0))
    return (
        f"{name} has an entry of {largest:.4g}, expected at most {LARGEST:g}" if largest > LARGEST else None
    )


def _largest_entry(request: ViewRequest) -> float:
    """Largest feature of an image on the view: a random Fourier feature is a scaled cosine."""
    return LARGEST if request.fourier is None else float(np.sqrt(2 / request.fourier.num_components))
