"""Update: the difference between trained and received weights, through an ordered list of small steps.

The first is always the difference to what was received. Steps that bound or shrink it (clip,
noise, compress) follow in the order of the list, each a function from arrays to new arrays.
"""

from collections.abc import Callable, Container, Sequence
from typing import TypeAlias

import numpy as np

from client.training.state.local_state import SiteState
from common import wire
from common.errors import WireError
from common.weights import Array, Arrays, Layout, norm, subtract
from common.wire import compact

Step: TypeAlias = Callable[[Arrays], Arrays]


def delta(trained: Arrays, received: Arrays, steps: Sequence[Step] = ()) -> dict[str, Array]:
    """`trained - received`, taken through `steps`. Raises WireError if the names differ."""
    update: Arrays = subtract(trained, received)
    for step in steps:
        update = step(update)
    return dict(update)


def compressed(
    update: Arrays, layout: Layout, form: compact.Form, state: SiteState, number: int, seed: int
) -> dict[str, Array]:
    """The compact form of the update of round `number`. What it leaves out is kept for the next round.

    Raises StorageError.
    """
    wanted = compact.with_left_over(update, state.rest(before_round=number))
    packed = compact.pack(wanted, layout, form, np.random.default_rng(seed))
    state.keep_rest(number, compact.left_over(wanted, packed, layout, form))
    return packed


def whole_plan(plan: wire.RoundPlan, state: SiteState) -> wire.RoundPlan:
    """`plan` with whole weights: the change that it brings is added to the weights of the round before.

    Raises WireError for a change that is not one of the study, WeightsMissing if its base is not here.
    """
    if plan.base is None:
        return plan
    form = compact.down(plan.study.transport)
    if not form.is_compact:
        raise WireError("found a change of weights, expected whole ones: the study sends no changes")
    before, layout = state.received(plan.round - 1, plan.base)
    change = compact.unpack(plan.weights, layout, form)
    return plan.model_copy(update={"weights": compact.applied(before, change, layout)})


def relative_change(before: Arrays, now: Arrays, names: Container[str]) -> float:
    """Euclidean norm of `now - before` over these tensors, as a share of that of `before`; 0 if that is 0."""
    former = {name: before[name] for name in before if name in names and name in now}
    length = norm(former)
    return norm(subtract({name: now[name] for name in former}, former)) / length if length else 0.0
