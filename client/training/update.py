"""Update: the difference between trained and received weights, through an ordered list of small steps.

The first is always the difference to what was received. Steps that bound or shrink it (clip,
noise, compress) follow in the order of the list, each a function from arrays to new arrays.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from common.weights import Array, Arrays, subtract

Step: TypeAlias = Callable[[Arrays], Arrays]


def delta(trained: Arrays, received: Arrays, steps: Sequence[Step] = ()) -> dict[str, Array]:
    """`trained - received`, taken through `steps`. Raises WireError if the names differ."""
    update: Arrays = subtract(trained, received)
    for step in steps:
        update = step(update)
    return dict(update)
