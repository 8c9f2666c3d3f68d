"""Control variates: a site's half of SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, option II).

A control variate stands for a mean gradient: c_i for that of this site, c for that of all. Every gradient of a round
is corrected by c - c_i, so sites with other images walk in one direction. c comes with the weights; c_i stays here, on
the site's disk, by round. The plan names the last round of this site that counted, because the server's c is the
mean of the c_i of such rounds alone.
"""

import math

import numpy as np
from torch import Tensor, nn

from client.model.parameters import TensorNames
from client.training.batches import training_batches
from client.training.fit import StudyPosition, learning_rates
from client.training.state.local_state import SiteState
from common import wire
from common.config import Scaffold
from common.errors import WireError
from common.weights import Array, Arrays, norm


class ControlVariates:
    """The control variates of one round; under any other algorithm there are none."""

    correction: Arrays
    """What is added to every gradient, by parameter; empty in a site's first round, if no other has trained."""

    def __init__(self, plan: wire.RoundPlan, parts: TensorNames, model: nn.Module, state: SiteState) -> None:
        """Raises WireError if the received control variate is not of the parameters that travel."""
        self._plan, self._state = plan, state
        self._names: set[str] = set()
        self.correction = {}
        if not isinstance(plan.study.algorithm, Scaffold):
            return
        self._names = {name for name, _ in model.named_parameters()} & set(parts.shared)
        server = plan.control_variate
        if server and server.keys() != self._names:
            raise WireError("the received control variate is not of the parameters that this study shares")
        self.correction = corrections(server, state.control_variate(plan.control))

    def keep(self, delta: Arrays, rate_sum: float) -> None:
        """Keep the site's next control variate. `rate_sum` is the sum of the round's learning rates."""
        if self._names:
            moved = {name: array for name, array in delta.items() if name in self._names}
            control = next_control(moved, self.correction, rate_sum)
            self._state.keep_control_variate(self._plan.round, control, before=self._plan.control)


def corrections(server: Arrays, own: Arrays) -> dict[str, Array]:
    """c - c_i. Either is empty before it was first made, and stands for zeros. Raises WireError if their tensors
    differ.
    """
    if server and own and server.keys() != own.keys():
        raise WireError("the received control variate has other tensors than the one that this site keeps")
    if not own:
        return dict(server)
    return {name: np.asarray(server[name] - array if server else -array) for name, array in own.items()}


def next_control(delta: Arrays, correction: Arrays, rate_sum: float) -> dict[str, Array]:
    """c_i' = c_i - c - delta / (sum of the learning rates), the site's mean gradient in the round.

    `delta` is trained minus received, over parameters; `correction` is c - c_i.
    """
    return {
        name: np.asarray(-array / rate_sum - correction.get(name, 0), array.dtype)
        for name, array in delta.items()
    }


def shift(plan: wire.RoundPlan, labels_N: Tensor, progress: StudyPosition) -> float:
    """How far the received control variate alone moves the weights in this round, as a share of their norm.

    `labels_N` are those of the site's training images.
    """
    control = plan.control_variate
    if not control:
        return 0.0
    steps = training_batches(labels_N, plan.study.local, 0, progress.pass_place)
    length = norm({name: array for name, array in plan.network.items() if name in control})
    rate_sum = math.fsum(learning_rates(plan.study.local, progress, len(steps)))
    return rate_sum * norm(control) / length if length else 0.0
