"""Server steps: Flower's own strategies on the same arrays, and numbers worked by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from common.config import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedNova, FedProx, FedYogi, Scaffold
from common.weights import TensorSpec, add, norm, subtract
from server.aggregation.server_optimizer import step
from server.aggregation.tally import AdmittedUpdate, weighted_mean
from server.state import OptimizerState

ONE = {"w": TensorSpec(shape=(1,), dtype="float64")}
ALL = [FedAvg(), FedProx(), Scaffold(), FedNova(), FedAvgM(), FedAdam(), FedYogi(), FedAdagrad()]
by_kind = pytest.mark.parametrize("algorithm", ALL, ids=lambda algorithm: algorithm.kind)

PAIRS = {
    "fedavg": (FedAvg(), lambda: flower.FedAvg()),
    "fedprox": (FedProx(mu=0.3), lambda: flower.FedProx(proximal_mu=0.3)),
    "fedavgm": (
        FedAvgM(server_lr=0.7, momentum=0.8),
        lambda: flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.8),
    ),
    "fedavgm without momentum": (
        FedAvgM(server_lr=0.7, momentum=0.0),
        lambda: flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.0),
    ),
    "fedavgm as plain fedavg": (
        FedAvgM(server_lr=1.0, momentum=0.0),
        lambda: flower.FedAvgM(server_learning_rate=1.0, server_momentum=0.0),
    ),
    "fedadam": (FedAdam(max_step=None), lambda: flower.FedAdam()),
    "fedadam with other settings": (
        FedAdam(server_lr=0.03, beta1=0.5, beta2=0.9, tau=0.1, max_step=None),
        lambda: flower.FedAdam(eta=0.03, beta_1=0.5, beta_2=0.9, tau=0.1),
    ),
    "fedyogi": (FedYogi(max_step=None), lambda: flower.FedYogi()),
    "fedyogi with other settings": (
        FedYogi(server_lr=0.2, beta1=0.5, beta2=0.7, tau=0.01, max_step=None),
        lambda: flower.FedYogi(eta=0.2, beta_1=0.5, beta_2=0.7, tau=0.01),
    ),
    "fedadagrad": (FedAdagrad(max_step=None), lambda: flower.FedAdagrad()),
}


def reply(arrays, num_examples: int):
    """What a strategy reads of a reply; a Message proper exists only inside a Flower task."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "metrics": MetricRecord({"num-examples": num_examples}),
        }
    )
    return SimpleNamespace(
        content=content, has_error=lambda: False, metadata=SimpleNamespace(src_node_id=num_examples)
    )


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("name", PAIRS)
def test_steps_equal_flowers_own_strategy_over_several_rounds(name, dtype, rtol):
    algorithm, build = PAIRS[name]
    theirs = build()
    rng = np.random.default_rng(7)
    shapes = {"conv.weight": (3, 4), "head.bias": (5,), "scale": ()}
    layout = {tensor: TensorSpec(shape=shape, dtype=dtype) for tensor, shape in shapes.items()}
    ours = {tensor: np.asarray(rng.normal(size=shape), dtype) for tensor, shape in shapes.items()}
    expected = {tensor: array.copy() for tensor, array in ours.items()}
    state = OptimizerState()
    for number in range(1, 6):
        moves = {
            (site, n): {t: np.asarray(rng.normal(scale=0.3, size=s), dtype) for t, s in shapes.items()}
            for site, n in [("a", 7), ("b", 31), ("c", 200)]
        }
        delta = weighted_mean([AdmittedUpdate(site, n, move) for (site, n), move in moves.items()])
        ours, state = step(algorithm, ours, delta, layout, state)

        # Flower is told what it would have been sent: whole weights, and the round's number.
        sent = ArrayRecord({tensor: Array(array) for tensor, array in expected.items()})
        if isinstance(theirs, flower.FedAvgM):
            theirs.current_arrays = theirs.current_arrays or sent
        elif hasattr(theirs, "current_arrays"):
            theirs.current_arrays = {tensor: array.numpy() for tensor, array in sent.items()}
        replies = [reply(add(expected, move), n) for (_, n), move in moves.items()]
        stepped, _ = theirs.aggregate_train(number, replies)
        expected = {tensor: array.numpy() for tensor, array in stepped.items()}
        for tensor in shapes:
            assert isinstance(ours[tensor], np.ndarray)
            np.testing.assert_allclose(ours[tensor], expected[tensor], rtol=rtol, atol=rtol)
            assert ours[tensor].dtype == dtype
        expected = {tensor: array.astype(dtype) for tensor, array in expected.items()}
    assert state.step == 5


def one_step(algorithm, state=None, delta=0.5):
    moved, state = step(
        algorithm, {"w": np.array([1.0])}, {"w": np.array([delta])}, ONE, state or OptimizerState()
    )
    return float(moved["w"][0]), state


def test_fedavg_adds_the_delta():
    assert one_step(FedAvg())[0] == 1.5


def test_the_server_half_of_fedprox_is_fedavg(random_arrays, layout):
    arguments = random_arrays(1), random_arrays(2), layout, OptimizerState()
    ours, expected = step(FedProx(mu=5.0), *arguments)[0], step(FedAvg(), *arguments)[0]
    assert all(ours[name].tobytes() == expected[name].tobytes() for name in layout)


def test_momentum_remembers():
    moved, state = one_step(FedAvgM(server_lr=0.5, momentum=0.9))
    assert moved == 1.25  # m = 0.5; 1 + 0.5 * 0.5
    moved, state = one_step(FedAvgM(server_lr=0.5, momentum=0.9), state)
    assert moved == pytest.approx(1.475)  # m = 0.9 * 0.5 + 0.5 = 0.95; 1 + 0.5 * 0.95
    assert state.slots["momentum"]["w"][0] == pytest.approx(0.95)


def test_damped_momentum_follows_a_steady_delta_once():
    damped = FedAvgM(server_lr=1.0, momentum=0.9, damped=True)
    moved, state = one_step(damped)
    assert moved == pytest.approx(1.5)  # m = 0.05, over 1 - 0.9
    moved, state = one_step(damped, state)
    assert moved == pytest.approx(1.5)  # m = 0.095, over 1 - 0.81
    moved, _ = one_step(damped, state, delta=0.0)
    assert moved == pytest.approx(1 + 0.9 * 0.095 / (1 - 0.9**3))


@pytest.mark.parametrize("kind", [FedAdam, FedYogi, FedAdagrad])
def test_a_default_step_is_never_longer_than_the_mean_delta(kind, random_arrays, layout):
    """With a delta of 0.001 in each entry FedAdam's first step, as published, is 6.7 times as long."""
    weights = random_arrays(1)
    delta = {name: np.full_like(array, 0.001) for name, array in weights.items()}
    state, after = OptimizerState(), weights
    for _ in range(3):
        before = after
        after, state = step(kind(server_lr=0.1), before, delta, layout, state)
        moved = {name: array for name, array in subtract(after, before).items() if "running" not in name}
        assert norm(moved) <= 1.0001 * norm({name: delta[name] for name in moved})
    free, _ = step(FedAdam(server_lr=0.1, max_step=None), weights, delta, layout, OptimizerState())
    ratio = (free["head.bias"] - weights["head.bias"])[0] / 0.001
    # m = 1e-4, sqrt(v) = 1e-4: 0.1 * sqrt(0.0199) / 0.19 * 1e-4 / 1.1e-3
    assert ratio == pytest.approx(0.1 * math.sqrt(0.0199) / 0.19 * 0.1 / 1.1 / 0.001, rel=1e-6)


def test_a_step_that_is_short_enough_keeps_its_bits(random_arrays, layout):
    arguments = random_arrays(1), random_arrays(2), layout, OptimizerState()
    bounded, free = (step(FedAdam(server_lr=0.01, max_step=most), *arguments)[0] for most in (1.0, None))
    assert all(bounded[name].tobytes() == free[name].tobytes() for name in layout)


def test_adam_worked_by_hand():
    moved, state = one_step(FedAdam(server_lr=0.1, beta1=0.9, beta2=0.99, tau=0.001))
    # m = 0.1 * 0.5 = 0.05, v = 0.01 * 0.25 = 0.0025, sqrt(v) = 0.05
    # lr = 0.1 * sqrt(1 - 0.99**2) / (1 - 0.9**2) = 0.1 * sqrt(0.0199) / 0.19
    assert moved == pytest.approx(1 + 0.1 * math.sqrt(0.0199) / 0.19 * 0.05 / 0.051)
    assert state.slots["momentum"]["w"][0] == pytest.approx(0.05)
    assert state.slots["second_moment"]["w"][0] == pytest.approx(0.0025)


def test_yogi_worked_by_hand():
    moved, state = one_step(FedYogi(server_lr=0.01, beta1=0.9, beta2=0.99, tau=0.001))
    # v = 0 - 0.01 * 0.25 * sign(0 - 0.25) = 0.0025
    assert moved == pytest.approx(1 + 0.01 * 0.05 / 0.051)
    _, state = one_step(FedYogi(), state, delta=0.01)
    # Now v > delta**2 = 0.0001, so v shrinks by 0.01 * 0.0001, and by no more.
    assert state.slots["second_moment"]["w"][0] == pytest.approx(0.0025 - 1e-6)


def test_adagrad_worked_by_hand():
    _, state = one_step(FedAdagrad(server_lr=0.1, tau=0.001))
    moved, state = one_step(FedAdagrad(server_lr=0.1, tau=0.001), state, delta=1.2)
    # v = 0.25 + 1.44 = 1.69, sqrt = 1.3; m = delta
    assert state.slots["second_moment"]["w"][0] == pytest.approx(1.69)
    assert moved == pytest.approx(1 + 0.1 * 1.2 / 1.301)


def test_adagrad_may_carry_momentum():
    _, state = one_step(FedAdagrad(beta1=0.5))
    _, state = one_step(FedAdagrad(beta1=0.5), state)
    assert state.slots["momentum"]["w"][0] == 0.375  # 0.5 * 0.25 + 0.5 * 0.5


@by_kind
def test_running_statistics_always_take_the_plain_mean(algorithm, random_arrays, layout):
    weights, delta = random_arrays(1), random_arrays(2)
    moved, state = step(algorithm, weights, delta, layout, OptimizerState())
    moved, state = step(algorithm, moved, delta, layout, state)
    twice = weights["norm.running_var"] + delta["norm.running_var"] + delta["norm.running_var"]
    np.testing.assert_array_equal(moved["norm.running_var"], twice)
    assert all("norm.running_var" not in slot for slot in state.slots.values())


@by_kind
def test_a_step_keeps_names_shapes_and_dtypes(algorithm, random_arrays, layout):
    moved, state = step(algorithm, random_arrays(1), random_arrays(2), layout, OptimizerState())
    for name, spec in layout.items():
        assert (moved[name].shape, str(moved[name].dtype)) == (spec.shape, spec.dtype)
    for slot in state.slots.values():
        assert {name: str(a.dtype) for name, a in slot.items()} == {
            "stem.weight": "float32",
            "head.bias": "float64",
        }


@by_kind
def test_a_step_changes_none_of_its_arguments(algorithm, random_arrays, layout):
    weights, delta = random_arrays(1), random_arrays(2)
    _, state = step(algorithm, weights, delta, layout, OptimizerState())
    before = {slot: {n: a.copy() for n, a in arrays.items()} for slot, arrays in state.slots.items()}
    step(algorithm, weights, delta, layout, state)
    assert state.step == 1
    for arrays, seed in ((weights, 1), (delta, 2)):
        assert all(np.array_equal(arrays[n], a) for n, a in random_arrays(seed).items())
    for slot, arrays in before.items():
        assert all(np.array_equal(state.slots[slot][n], a) for n, a in arrays.items())


@by_kind
def test_a_delta_of_zero_moves_nothing_at_first(algorithm, random_arrays, layout):
    weights = random_arrays(1)
    moved, _ = step(algorithm, weights, subtract(weights, weights), layout, OptimizerState())
    assert all(np.array_equal(moved[name], weights[name]) for name in weights)
