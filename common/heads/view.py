"""Views of features: scaled, projected, or mapped by random Fourier features."""

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from common.errors import WireError
from common.settings import Frozen
from common.weights import Array, Arrays

Floats: TypeAlias = npt.NDArray[np.float64]

LARGEST_MAP = 8192
"""Most random Fourier features."""


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
    def width_before(self) -> int:
        """Features that the map takes."""
        return len(self.shift_F)

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
            weights_KD, offsets_D = drawn(self.fourier, mapped.shape[1])
            mapped = mapped @ weights_KD
            mapped += offsets_D
            np.cos(mapped, out=mapped)
            mapped *= np.sqrt(2 / self.fourier.num_components)
        return mapped

    def arrays(self) -> dict[str, Array]:
        """Arrays of the view by name; with `fourier` they define it."""
        components = {} if self.components_FK is None else {"components": self.components_FK}
        return {"shift": self.shift_F, "scale": self.scale_F, **components}


def identity(width: int) -> View:
    """The view that leaves features unchanged."""
    return View(np.zeros(width), np.ones(width))


def read_view(arrays: Arrays, fourier: Fourier | None) -> View:
    """Undo `View.arrays`. Raises WireError."""
    shift_F, scale_F, components_FK = need(arrays, "shift", 1), need(arrays, "scale", 1), None
    if "components" in arrays:
        components_FK = need(arrays, "components", 2)
    if shift_F.shape != scale_F.shape or not np.all(scale_F > 0):
        raise WireError("found a view whose scale does not fit its shift or is not positive")
    if components_FK is not None and len(components_FK) != len(shift_F):
        raise WireError("found a view whose components do not fit its width")
    return View(shift_F, scale_F, components_FK, fourier)


def drawn(fourier: Fourier, width: int) -> tuple[Floats, Floats]:
    """Directions and offsets. RandomState, because its draws never change from version to version."""
    draws = np.random.RandomState(fourier.seed)
    directions_KD = np.sqrt(2 * fourier.gamma) * draws.normal(size=(width, fourier.num_components))
    return directions_KD, draws.uniform(0, 2 * np.pi, size=fourier.num_components)


def under(prefix: str, arrays: Arrays) -> dict[str, Array]:
    """`arrays` with `prefix/` before each name."""
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def below(prefix: str, arrays: Arrays) -> dict[str, Array]:
    """Undo `under`: the arrays whose names start with `prefix/`."""
    start = f"{prefix}/"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def need(arrays: Arrays, name: str, num_axes: int) -> Floats:
    """The float64 array `name` with `num_axes` axes. Raises WireError if it is missing or has another form."""
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
