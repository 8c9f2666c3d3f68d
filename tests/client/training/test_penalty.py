import pytest
import torch
from torch import nn

from client.training.penalty import build_penalty, proximal
from common.config import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi


@pytest.fixture
def model():
    """26 weights: 12 * 2 and 2 biases."""
    return nn.Linear(12, 2)


def move(model, by):
    with torch.no_grad():
        for weight in model.parameters():
            weight += by


def gradients(penalty, model):
    model.zero_grad()
    penalty(model).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def test_proximal_term_is_half_mu_times_the_squared_distance(model):
    penalty = proximal(model, mu=4)
    move(model, 0.1)
    # 26 weights, each 0.1 away: 4/2 * 26 * 0.1² = 0.52
    assert penalty(model).item() == pytest.approx(0.52, rel=1e-5)
    # mu * (w - w_received) = 4 * 0.1
    assert gradients(penalty, model).tolist() == pytest.approx([0.4] * 26, rel=1e-5)


def test_the_unsquared_term_is_half_mu_times_the_distance(model):
    penalty = proximal(model, mu=4, squared=False)
    move(model, 0.1)
    # 4/2 * sqrt(26 * 0.1²) = 2 * 0.509902
    assert penalty(model).item() == pytest.approx(1.019804, rel=1e-5)
    # mu/2 * (w - w_received) / distance = 2 * 0.1 / 0.509902
    assert gradients(penalty, model).tolist() == pytest.approx([0.392232] * 26, rel=1e-5)


@pytest.mark.parametrize("squared", [True, False])
def test_where_training_starts_the_penalty_and_its_gradient_are_zero(model, squared):
    penalty = proximal(model, mu=4, squared=squared)
    assert penalty(model).item() == 0
    assert gradients(penalty, model).tolist() == [0.0] * 26


def test_frozen_weights_do_not_count(model):
    model.bias.requires_grad_(False)
    penalty = proximal(model, mu=4)
    move(model, 0.1)
    assert penalty(model).item() == pytest.approx(0.48, rel=1e-5)  # 4/2 * 24 * 0.1²


@pytest.mark.parametrize(
    "algorithm",
    [FedAvg(), FedAvgM(), FedAdam(), FedYogi(), FedAdagrad(), FedProx(mu=0)],
    ids=lambda a: a.kind,
)
def test_only_fedprox_with_a_mu_has_a_penalty(model, algorithm):
    assert build_penalty(algorithm, model) is None


@pytest.mark.parametrize(("squared", "expected"), [(True, 0.52), (False, 1.019804)])
def test_fedprox_takes_mu_and_square_from_the_study(model, squared, expected):
    penalty = build_penalty(FedProx(mu=4, squared=squared), model)
    move(model, 0.1)
    assert penalty(model).item() == pytest.approx(expected, rel=1e-5)
