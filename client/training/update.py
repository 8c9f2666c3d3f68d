"""Update: the difference between trained and received weights, through an ordered list of small steps.

The first is always the difference to what was received. Steps that bound or shrink it (clip,
noise, compress) follow in the order of the list, each a function from arrays to new arrays.
"""

from collections.abc import Callable, Container, Sequence
from typing import TypeAlias

from common.weights import Array, Arrays, norm, subtract

Step: TypeAlias = Callable[[Arrays], Arrays]


def delta(trained: Arrays, received: Arrays, steps: Sequence[Step] = ()) -> dict[str, Array]:
    """`trained - received`, taken through `steps`. Raises WireError if the names differ."""
    update: Arrays = subtract(trained, received)
    for step in steps:
        update = step(update)
    return dict(update)


def relative_change(before: Arrays, now: Arrays, names: Container[str]) -> float:
    """Euclidean norm of `now - before` over these tensors, as a share of that of `before`; 0 if that is 0."""
    former = {name: before[name] for name in before if name in names and name in now}
    length = norm(former)
    return norm(subtract({name: now[name] for name in former}, former)) / length if length else 0.0
