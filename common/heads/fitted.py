"""Fitted heads: arrays on top of a view of the features, and the probabilities that follow.

A view maps features: scaling, principal components, random Fourier features, in this order and each
of them optional. A head is a few arrays on top of a view, so it travels, is kept and is applied
without pickle and without the library that could have fitted it:

    linear     scores x W + b; the probabilities are their softmax
    gaussian   a mean and a variance per class and feature, and log priors
    vote       several linear heads, one a site; the mean of their probabilities by their shares

Support vector machines, ridge and nearest mean have scores that are no log probabilities: their softmax
ranks the classes rightly and is not calibrated.

N images, F features, D features of a view, C classes, S sites. Computed in float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import StringConstraints

from common.errors import WireError
from common.heads.view import Floats, Fourier, View, need, read_view
from common.settings import Frozen
from common.weights import Array, Arrays

ABSENT = -1e9
"""Score of a class without training images: its probability is 0, and the number is finite."""


Form: TypeAlias = Literal["linear", "gaussian", "vote"]


class HeadForm(Frozen):
    """Description of a head besides its arrays."""

    title: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
    """Title in the report, e.g. `federated.lda`."""
    form: Form
    fourier: Fourier | None = None


@dataclass(frozen=True)
class FittedHead:
    """A head that can be applied."""

    form: HeadForm
    view: View
    parameters: Mapping[str, Floats]

    def probabilities(self, features_NF: npt.NDArray[np.floating]) -> Floats:
        """(N, C); rows sum to 1."""
        mapped_ND, parts = self.view.of(features_NF), self.parameters
        match self.form.form:
            case "linear":
                return softmax(mapped_ND @ parts["weights"] + parts["bias"])
            case "gaussian":
                return softmax(_log_gaussian(mapped_ND, parts["means"], parts["variances"]) + parts["priors"])
            case "vote":
                each_SNC = np.stack(
                    [
                        softmax(mapped_ND @ weights_DC + bias_C)
                        for weights_DC, bias_C in zip(parts["weights"], parts["bias"], strict=True)
                    ]
                )
                voted_NC: Floats = np.einsum("snc,s->nc", each_SNC, parts["shares"])
                return voted_NC

    def arrays(self) -> dict[str, Array]:
        """The view's arrays and the parameters, by name."""
        return {**self.view.arrays(), **self.parameters}


_PARAMETERS: Mapping[Form, Mapping[str, str]] = {
    "linear": {"weights": "DC", "bias": "C"},
    "gaussian": {"means": "CD", "variances": "CD", "priors": "C"},
    "vote": {"weights": "SDC", "bias": "SC", "shares": "S"},
}


def read_head(form: HeadForm, arrays: Arrays, num_classes: int) -> FittedHead:
    """A head from arrays that were received or kept. Raises WireError if one is missing or has another shape."""
    wanted = _PARAMETERS[form.form]
    view = read_view({n: a for n, a in arrays.items() if n not in wanted}, form.fourier)
    parameters = {name: need(arrays, name, len(axes)) for name, axes in wanted.items()}
    sizes = {
        "D": view.width,
        "C": num_classes,
        "S": len(parameters["shares"]) if "shares" in parameters else 0,
    }
    for name, axes in wanted.items():
        expected = tuple(sizes[axis] for axis in axes)
        if parameters[name].shape != expected:
            raise WireError(
                f"{name} of head {form.title} is {list(parameters[name].shape)}, expected {list(expected)}"
            )
    return FittedHead(form, view, parameters)


def softmax(scores_NC: Floats) -> Floats:
    """Softmax along the last axis."""
    powers_NC: Floats = np.exp(scores_NC - scores_NC.max(axis=-1, keepdims=True))
    result: Floats = powers_NC / powers_NC.sum(axis=-1, keepdims=True)
    return result


def _log_gaussian(mapped_ND: Floats, means_CD: Floats, variances_CD: Floats) -> Floats:
    """Log density of each image under each class, features taken as independent."""
    constant_C = -0.5 * np.log(2 * np.pi * variances_CD).sum(axis=1)
    columns: list[Floats] = [
        -0.5 * ((mapped_ND - mean_D) ** 2 / variance_D).sum(axis=1)
        for mean_D, variance_D in zip(means_CD, variances_CD, strict=True)
    ]
    result: Floats = np.stack(columns, axis=1) + constant_C
    return result
