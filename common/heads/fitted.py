"""What server and site must agree on for a head: how features are mapped, and what a head says of them.

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
from pydantic import Field

from common.errors import WireError
from common.settings import Frozen
from common.weights import Array, Arrays

Floats: TypeAlias = npt.NDArray[np.float64]

ABSENT = -1e9
"""Score of a class of which no image was seen: its probability is 0, and the number is finite."""
LARGEST_MAP = 8192


class Fourier(Frozen):
    """Random Fourier features (Rahimi and Recht 2007, NIPS 20), as scikit-learn's RBFSampler draws them."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    gamma: Annotated[float, Field(gt=0)]
    """Of the kernel exp(-gamma ||x - y||²)."""
    num_components: Annotated[int, Field(ge=1, le=LARGEST_MAP)]


@dataclass(frozen=True)
class View:
    """A map of features. Equal settings and arrays give the same map at every site."""

    shift_F: Floats
    scale_F: Floats
    components_FK: Floats | None = None
    fourier: Fourier | None = None

    @property
    def width(self) -> int:
        """Features after the map."""
        if self.fourier is not None:
            return self.fourier.num_components
        return len(self.shift_F) if self.components_FK is None else self.components_FK.shape[1]

    def of(self, features_NF: npt.NDArray[np.floating]) -> Floats:
        """(N, D) in float64. Raises WireError if the features have another width."""
        if features_NF.shape[1] != len(self.shift_F):
            raise WireError(
                f"found features of width {features_NF.shape[1]}, expected {len(self.shift_F)}; "
                "the head was made with another network or layer"
            )
        mapped: Floats = (features_NF.astype(np.float64) - self.shift_F) / self.scale_F
        if self.components_FK is not None:
            mapped = mapped @ self.components_FK
        if self.fourier is not None:
            weights_KD, offsets_D = _drawn(self.fourier, mapped.shape[1])
            mapped = mapped @ weights_KD
            mapped += offsets_D
            np.cos(mapped, out=mapped)
            mapped *= np.sqrt(2 / self.fourier.num_components)
        return mapped

    def arrays(self) -> dict[str, Array]:
        """What has to travel of it, besides `fourier`."""
        components = {} if self.components_FK is None else {"components": self.components_FK}
        return {"shift": self.shift_F, "scale": self.scale_F, **components}


def identity(width: int) -> View:
    """Features as they are."""
    return View(np.zeros(width), np.ones(width))


def read_view(arrays: Arrays, fourier: Fourier | None) -> View:
    """Undo `View.arrays`. Raises WireError."""
    shift_F, scale_F, components_FK = _need(arrays, "shift", 1), _need(arrays, "scale", 1), None
    if "components" in arrays:
        components_FK = _need(arrays, "components", 2)
    if shift_F.shape != scale_F.shape or not np.all(scale_F > 0):
        raise WireError("found a view whose scale does not fit its shift or is not positive")
    if components_FK is not None and len(components_FK) != len(shift_F):
        raise WireError("found a view whose components do not fit its width")
    return View(shift_F, scale_F, components_FK, fourier)


def _drawn(fourier: Fourier, width: int) -> tuple[Floats, Floats]:
    """Directions and offsets. RandomState, because its draws never change from version to version."""
    draws = np.random.RandomState(fourier.seed)
    directions_KD = np.sqrt(2 * fourier.gamma) * draws.normal(size=(width, fourier.num_components))
    return directions_KD, draws.uniform(0, 2 * np.pi, size=fourier.num_components)


# --- heads -----------------------------------------------------------------------------------

Form: TypeAlias = Literal["linear", "gaussian", "vote"]


class HeadForm(Frozen):
    """What there is to say of a head besides its arrays."""

    title: str
    """As the report calls it, e.g. `federated.lda`."""
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
        """Everything numeric of it."""
        return {**self.view.arrays(), **self.parameters}


_PARAMETERS: Mapping[Form, Mapping[str, str]] = {
    "linear": {"weights": "DC", "bias": "C"},
    "gaussian": {"means": "CD", "variances": "CD", "priors": "C"},
    "vote": {"weights": "SDC", "bias": "SC", "shares": "S"},
}


def read_head(form: HeadForm, arrays: Arrays, num_classes: int) -> FittedHead:
    """A head from what travelled or was kept. Raises WireError if it is not whole."""
    wanted = _PARAMETERS[form.form]
    view = read_view({n: a for n, a in arrays.items() if n not in wanted}, form.fourier)
    parameters = {name: _need(arrays, name, len(axes)) for name, axes in wanted.items()}
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
    """Along the last axis."""
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


# --- names of arrays ---------------------------------------------------------------------------


def under(prefix: str, arrays: Arrays) -> dict[str, Array]:
    """`arrays` with `prefix/` before each name."""
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def below(prefix: str, arrays: Arrays) -> dict[str, Array]:
    """Undo `under`: the arrays whose names start with `prefix/`."""
    start = f"{prefix}/"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def _need(arrays: Arrays, name: str, num_axes: int) -> Floats:
    if name not in arrays:
        raise WireError(f"{name} is missing")
    array = arrays[name]
    if array.ndim != num_axes or array.dtype.kind != "f" or not np.all(np.isfinite(array)):
        raise WireError(f"{name} is not {num_axes}-dimensional, or not made of finite numbers")
    return array.astype(np.float64)


def triangle(square_DD: Floats) -> Array:
    """The lower half of a symmetric matrix, diagonal included: D (D + 1) / 2 numbers."""
    return np.asarray(square_DD[np.tril_indices(len(square_DD))])


def square(triangle_T: Array, width: int) -> Floats:
    """Undo `triangle`. Raises WireError if the length does not fit."""
    if triangle_T.shape != (width * (width + 1) // 2,):
        raise WireError(f"found second moments of length {triangle_T.size}, expected those of width {width}")
    full_DD = np.zeros((width, width))
    full_DD[np.tril_indices(width)] = triangle_T
    upper = np.triu_indices(width, 1)
    full_DD[upper] = full_DD.T[upper]
    return full_DD
