"""Server optimizers: the step from the weights and the aggregated delta to the next weights.

The aggregated delta is treated as a negative gradient, as in algorithm 2 of Reddi et al. 2021
(arXiv:2003.00295). A step is a pure function of weights, delta and an explicit state, so a
checkpoint of both resumes the optimizer as well. The arithmetic is that of Flower 1.39, whose
strategies serve as the reference in the tests; where Flower leaves the paper, the docstring
of the step says so.

Running statistics of normalisation layers are not parameters: they always take the plain
mean, because an adaptive step can make a variance negative. (Flower steps them like weights.)

Everything is computed in the dtype of the weights. (Flower's FedAdam turns float32 weights
into float64, because its learning rate is a NumPy scalar.)
"""

import math
from collections.abc import Mapping
from typing import TypeAlias, assert_never

import numpy as np

from common.config import (
    Algorithm,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedNova,
    FedProx,
    FedYogi,
    Scaffold,
)
from common.lazy_arrays import Computed
from common.weights import Array, Arrays, Layout, norm
from server.state import OptimizerState

Slots: TypeAlias = dict[str, dict[str, Array]]

MOMENTUM = "momentum"
"""Slot of the first moment, m_t."""
SECOND_MOMENT = "second_moment"
"""Slot of the second moment, v_t."""


def step(
    algorithm: Algorithm, weights: Arrays, delta: Arrays, layout: Layout, state: OptimizerState
) -> tuple[dict[str, Array], OptimizerState]:
    """The next weights and the next state; neither argument is changed."""
    assert weights.keys() == delta.keys() == layout.keys(), "admission compares names before any step"
    number = state.step + 1
    parameters = dict.fromkeys(name for name in delta if layout[name].role == "parameter")
    # Read once by the algorithms that have no slots: `delta` may be computed when it is read.
    stepped: Arrays = Computed(parameters, lambda name: delta[name])
    if not isinstance(algorithm, FedAvg | FedProx | FedNova | Scaffold):
        stepped = dict(stepped)
    moves: Arrays
    match algorithm:
        case FedAvg() | FedProx() | FedNova():
            moves, slots = stepped, Slots()
        case Scaffold(server_lr=lr):  # its slot is made in `control_variates.py`
            moves, slots = Computed(parameters, lambda name: np.asarray(lr * delta[name])), Slots()
        case FedAvgM():
            moves, slots = _momentum(algorithm, stepped, state, number)
        case FedAdam():
            moves, slots = _adam(algorithm, stepped, state, number)
            moves = _bounded(algorithm.max_step, moves, stepped)
        case FedYogi():
            moves, slots = _yogi(algorithm, stepped, state)
            moves = _bounded(algorithm.max_step, moves, stepped)
        case FedAdagrad():
            moves, slots = _adagrad(algorithm, stepped, state)
            moves = _bounded(algorithm.max_step, moves, stepped)
        case _:
            assert_never(algorithm)
    moved = {
        name: np.asarray(array + (moves if name in moves else delta)[name], array.dtype)
        for name, array in weights.items()
    }
    return moved, OptimizerState(step=number, slots=slots)


def _momentum(
    config: FedAvgM, delta: Arrays, state: OptimizerState, number: int
) -> tuple[dict[str, Array], Slots]:
    """Hsu et al. 2019 (arXiv:1909.06335): m_t = momentum * m_{t-1} + delta_t; w += server_lr * m_t.

    Not damped: delta_t counts in full, so a steady delta is followed 1 / (1 - momentum) times
    as far. Damped: m_t = momentum * m_{t-1} + (1 - momentum) * delta_t and w += server_lr * m_t / (1 - momentum^t), so
    the first step is along the first delta, and a steady one is followed once.
    """
    gain = 1 - config.momentum if config.damped else 1.0
    lr = config.server_lr / (1 - config.momentum**number) if config.damped else config.server_lr
    m = _moved(_slot(state, MOMENTUM, delta), config.momentum, delta, gain)
    return {name: lr * m[name] for name in delta}, {MOMENTUM: m}


def _adam(
    config: FedAdam, delta: Arrays, state: OptimizerState, number: int
) -> tuple[dict[str, Array], Slots]:
    """v_t = beta2 * v_{t-1} + (1 - beta2) * delta_t**2; w += lr_t * m_t / (sqrt(v_t) + tau).

    Two differences from the paper, both Flower's: v starts at 0 where the paper has at least
    tau**2, and the learning rate carries a bias correction, which the paper leaves out:
    lr_t = server_lr * sqrt(1 - beta2**(t+1)) / (1 - beta1**(t+1)) for step t = 1, 2, ... In
    Kingma and Ba 2015 (arXiv:1412.6980) the exponent is t.
    """
    m = _first_moment(config.beta1, delta, state)
    squares = {name: delta[name] ** 2 for name in delta}
    v = _moved(_slot(state, SECOND_MOMENT, delta), config.beta2, squares, 1 - config.beta2)
    correction = math.sqrt(1 - config.beta2 ** (number + 1)) / (1 - config.beta1 ** (number + 1))
    return _adaptive(config.server_lr * correction, config.tau, m, v), {MOMENTUM: m, SECOND_MOMENT: v}


def _yogi(config: FedYogi, delta: Arrays, state: OptimizerState) -> tuple[dict[str, Array], Slots]:
    """v_t = v_{t-1} - (1 - beta2) * delta_t**2 * sign(v_{t-1} - delta_t**2); then as Adam, uncorrected.

    One difference from the paper, Flower's: v starts at 0 where the paper has at least tau**2.
    """
    m = _first_moment(config.beta1, delta, state)
    before = _slot(state, SECOND_MOMENT, delta)
    towards = {name: delta[name] ** 2 * np.sign(before[name] - delta[name] ** 2) for name in delta}
    v = _moved(before, 1.0, towards, -(1 - config.beta2))
    return _adaptive(config.server_lr, config.tau, m, v), {MOMENTUM: m, SECOND_MOMENT: v}


def _adagrad(config: FedAdagrad, delta: Arrays, state: OptimizerState) -> tuple[dict[str, Array], Slots]:
    """v_t = v_{t-1} + delta_t**2; then as Yogi.

    v starts at 0, as Flower's, where the paper has at least tau**2. Flower has no `beta1`
    here; the paper's algorithm has, and 0 is its Adagrad without momentum.
    """
    m = _first_moment(config.beta1, delta, state)
    squares = {name: delta[name] ** 2 for name in delta}
    v = _moved(_slot(state, SECOND_MOMENT, delta), 1.0, squares, 1.0)
    return _adaptive(config.server_lr, config.tau, m, v), {MOMENTUM: m, SECOND_MOMENT: v}


def _bounded(most: float | None, moves: Arrays, delta: Arrays) -> dict[str, Array]:
    """`moves` with a norm of `most` times that of `delta` at most."""
    length = 0.0 if most is None else norm(moves)
    bound = 0.0 if most is None else most * norm(delta)
    if length <= bound or most is None:
        return dict(moves)
    return {name: np.asarray(array * (bound / length), array.dtype) for name, array in moves.items()}


def _first_moment(beta1: float, delta: Arrays, state: OptimizerState) -> dict[str, Array]:
    """m_t = beta1 * m_{t-1} + (1 - beta1) * delta_t."""
    return _moved(_slot(state, MOMENTUM, delta), beta1, delta, 1 - beta1)


def _adaptive(lr: float, tau: float, m: Arrays, v: Arrays) -> dict[str, Array]:
    """lr * m / (sqrt(v) + tau); tau bounds the step where the sites hardly moved."""
    return {name: lr * m[name] / (np.sqrt(v[name]) + tau) for name in m}


def _moved(old: Arrays, keep: float, new: Arrays, gain: float) -> dict[str, Array]:
    # NumPy's arithmetic turns an array of shape () into a bare number; slots are arrays.
    return {name: np.asarray(keep * old[name] + gain * new[name]) for name in new}


def _slot(state: OptimizerState, slot: str, like: Arrays) -> Mapping[str, Array]:
    """A slot of the state, or zeros before the first step."""
    if slot in state.slots:
        return state.slots[slot]
    return {name: np.zeros_like(array) for name, array in like.items()}
