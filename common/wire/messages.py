"""Messages between the server and a site: plans to the site, answers from it.

A message is one validated object: a kind, named fields and named arrays. `common.wire.codec` turns it into
bytes and into Flower's records.
"""

from common.weights import Arrays
from common.wire.answers import Answer
from common.wire.plans import HeadPlan, Plan, RoundPlan


def arrays_of(message: Plan | Answer) -> Arrays:
    """The tensors of a message, empty for a kind without any."""
    arrays: Arrays = getattr(message, message.ARRAYS) if message.ARRAYS else {}
    return arrays


def weights_of(plan: Plan) -> Arrays:
    """The weights that a plan brings along, empty without any."""
    if isinstance(plan, RoundPlan):
        return plan.network
    arrays = arrays_of(plan)
    if isinstance(plan, HeadPlan):
        return {name.removeprefix(_WEIGHTS): arrays[name] for name in arrays if name.startswith(_WEIGHTS)}
    return arrays


_WEIGHTS = "weights/"
"""Start of the names of a head plan's weights among its arrays."""
