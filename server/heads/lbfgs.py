"""L-BFGS for a smooth convex function that only sums over hospitals can evaluate, in few evaluations.

Each evaluation is a message to every site, so few points matter more than little arithmetic. L-BFGS
(Nocedal and Wright 2006, algorithm 7.5) starts each step from an initial curvature. Here it is an upper bound
of the true one, which the server has from the sites' second moments (Böhning and Lindsay 1988,
doi:10.1007/BF00049423, for the logistic loss). Where all images count, as they do for the squared hinge at
the start, the first step is Newton's.

A search is a value: `trial` is the next point to evaluate, `evaluated` gives the next search.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float64]
Solve: TypeAlias = Callable[[Vector], Vector]
"""x -> B⁻¹ x, for a curvature bound B."""

_MEMORY = 12
_SUFFICIENT = 1e-4
_SHORTEST = 1e-8


@dataclass(frozen=True)
class Search:
    """State of a search; points are vectors of P numbers."""

    solve: Solve
    tolerance: float
    """Stop when the expected gain of the next step is this share of the value."""
    point: Vector
    value: float = np.inf
    slope: Vector | None = None
    direction: Vector | None = None
    step: float = 1.0
    pairs: tuple[tuple[Vector, Vector], ...] = ()
    """Last steps and the changes of the slope along them."""
    done: bool = False

    @property
    def trial(self) -> Vector:
        """The next point whose value and slope are needed."""
        return self.point if self.direction is None else self.point + self.step * self.direction

    def evaluated(self, value: float, slope: Vector) -> "Search":
        """The search after the trial point has been evaluated."""
        if self.done:
            return self
        if self.direction is None or self.slope is None:
            return self._from(self.trial, value, slope, self.pairs)
        along = float(self.slope @ self.direction)
        if value <= self.value + _SUFFICIENT * self.step * along:
            moved, changed = self.trial - self.point, slope - self.slope
            pairs = self.pairs
            if moved @ changed > 1e-12 * float(np.linalg.norm(moved) * np.linalg.norm(changed)):
                pairs = (*pairs, (moved, changed))[-_MEMORY:]
            return self._from(self.trial, value, slope, pairs)
        # Least point of the parabola through the two values and the slope along the line.
        curvature = value - self.value - self.step * along
        best = -along * self.step**2 / (2 * curvature) if curvature > 0 else 0.5 * self.step
        step = float(np.clip(best, 0.1 * self.step, 0.5 * self.step))
        return replace(self, step=step, done=step < _SHORTEST)

    def restarted(self) -> "Search":
        """The search from the same point without memory, because the function has changed."""
        return replace(self, value=np.inf, slope=None, direction=None, step=1.0, pairs=(), done=False)

    def _from(
        self, point: Vector, value: float, slope: Vector, pairs: tuple[tuple[Vector, Vector], ...]
    ) -> "Search":
        direction = -_inverse_times(slope, pairs, self.solve)
        gain = -0.5 * float(slope @ direction)
        return replace(
            self, point=point, value=value, slope=slope, direction=direction, step=1.0, pairs=pairs,
            done=gain <= self.tolerance * abs(value),
        )  # fmt: skip


def _inverse_times(slope: Vector, pairs: tuple[tuple[Vector, Vector], ...], solve: Solve) -> Vector:
    """The two loops of L-BFGS: the inverse curvature, as the pairs correct it, times `slope`."""
    rest, shares = slope.copy(), []
    for moved, changed in reversed(pairs):
        share = float(moved @ rest) / float(moved @ changed)
        shares.append(share)
        rest -= share * changed
    result = solve(rest)
    if pairs:
        moved, changed = pairs[-1]
        result *= float(moved @ changed) / float(changed @ solve(changed))
    for (moved, changed), share in zip(pairs, reversed(shares), strict=True):
        result += (share - float(changed @ result) / float(moved @ changed)) * moved
    return result
