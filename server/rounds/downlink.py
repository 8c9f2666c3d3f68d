"""Weights on their way to the sites: whole, or the change by the last round.

With `transport.down` the change by a round is rounded once, for all sites, and the server goes on with the weights
that the rounded change leads to. So server, checkpoint and every site hold the same bits, whether a site got the
change or whole weights, and a digest of the weights means the same everywhere. What rounding left out is kept with the
server optimizer's state and added to the next change.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from common import seeds, wire
from common.config import StudyConfig
from common.weights import Array, digest
from common.wire import compact
from server.state import Change, OptimizerState, RoundState

REST = "transport"
"""Slot of the optimizer's state for what rounding left out."""


def adopt(
    study: StudyConfig, before: RoundState, target: Mapping[str, Array], optimizer: OptimizerState
) -> tuple[Mapping[str, Array], OptimizerState, Change | None]:
    """The weights after a round that was to lead to `target`, the optimizer's state, and the change as it travels."""
    form, layout = compact.down(study.transport), before.layout
    # Weights that are not finite have no scale, and travel as they are.
    if not form.is_compact or not all(np.isfinite(array).all() for array in target.values()):
        return target, optimizer, None
    chosen = set(compact.rounded(layout))
    wanted = compact.with_left_over(
        {
            name: np.asarray(array - before.weights[name]) if name in chosen else array
            for name, array in target.items()
        },
        before.optimizer.slots.get(REST),
    )
    random = np.random.default_rng(seeds.derive(study.seed, "server", before.round + 1, "rounding"))
    packed = compact.pack(wanted, layout, form, random)
    weights = compact.applied(before.weights, compact.values(packed, layout, form), layout)
    rest = compact.left_over(wanted, packed, layout, form)
    change = Change(packed, digest(before.weights), digest(weights))
    return weights, replace(optimizer, slots={**optimizer.slots, REST: rest}), change


def plan_for(plan: wire.RoundPlan, state: RoundState) -> wire.RoundPlan:
    """`plan`, which has whole weights, with the change instead if its site answered the round before."""
    answered = {row.site for row in state.sites if row.outcome == "ok"}
    if state.change is None or plan.site not in answered:
        return plan
    change = state.change
    return plan.model_copy(update={"weights": change.arrays, "base": change.base, "result": change.result})


def whole(plan: wire.RoundPlan, state: RoundState) -> wire.RoundPlan:
    """The same plan with whole weights."""
    return plan.model_copy(update={"weights": state.weights, "base": None, "result": None})
