"""Optimizers and learning-rate schedules, by hand."""

import pytest
import torch
from torch import nn

from client.training.optimizers import build_optimizer
from common.config import (
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Constant,
    Cosine,
    RMSprop,
    Sgd,
    Step,
)
from common.config.learning_rate import lr_factor


@pytest.mark.parametrize(
    ("schedule", "share", "factor"),
    [
        (Constant(), 0.3, 1),
        (Constant(warmup=0.2), 0.05, 0.25),
        (Constant(warmup=0.2), 0.2, 1),
        (Constant(warmup=1), 0.5, 0.5),
        (Cosine(), 0, 1),
        (Cosine(), 0.5, 0.5),
        (Cosine(), 1, 0),
        (Cosine(), 1 / 3, 0.75),  # (1 + cos 60°)/2
        (Cosine(final=0.1), 0.5, 0.55),  # 0.1 + 0.9/2
        (Cosine(warmup=0.2), 0.1, 0.5),
        (Cosine(warmup=0.2), 0.6, 0.5),  # half of the remaining 0.8
        (Cosine(warmup=1), 1, 1),
        (Step(), 0.49, 1),
        (Step(), 0.5, 0.1),
        (Step(), 0.8, 0.01),
        (Step(warmup=0.1, milestones=(0.3,), gamma=0.5), 0.05, 0.5),
        (Step(warmup=0.1, milestones=(0.3,), gamma=0.5), 0.4, 0.5),
    ],
)
def test_the_learning_rate_follows_the_whole_study(schedule, share, factor):
    assert lr_factor(schedule, share) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("optimizer", "after"),
    [
        # weight 1, gradient 2; Adam's first step is lr whatever the gradient
        (Sgd(lr=0.1, momentum=0.9, weight_decay=0.5), 0.75),  # 1 - 0.1 * (2 + 0.5*1)
        (Adam(lr=0.1, weight_decay=0.5), 0.9),  # 1 - 0.1 * 2.5/√2.5²
        (AdamW(lr=0.1, weight_decay=0.5), 0.85),  # 1 - 0.1*0.5*1 - 0.1 * 2/√2²
        (Adagrad(lr=0.1), 0.9),  # 1 - 0.1 * 2/√2²
        (Adadelta(lr=1, weight_decay=0), 0.9968377),  # 1 - 2 * √1e-6 / √(0.1 * 2² + 1e-6)
        (RMSprop(lr=0.1), 0.0),  # 1 - 0.1 * 2/√(0.01 * 2²)
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_the_first_step_of_an_optimizer_follows_its_formula(optimizer, after):
    weight = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    stepper = build_optimizer([weight], optimizer)
    (2 * weight).backward()
    stepper.step()
    assert weight.item() == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "second"),
    [
        (Sgd(lr=0.1, momentum=0.9, weight_decay=0), -0.38),  # -0.1 * (2 + 0.9*2)
        (RMSprop(lr=0.01, momentum=0.5), None),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_momentum_reaches_the_optimizer(optimizer, second):
    weight = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
    stepper = build_optimizer([weight], optimizer)
    assert stepper.defaults["momentum"] == optimizer.momentum
    weight.grad = torch.tensor(2.0, dtype=torch.float64)
    stepper.step()
    first = weight.item()
    stepper.step()
    if second is not None:
        assert weight.item() - first == pytest.approx(second)


@pytest.mark.parametrize("optimizer", [Adam(betas=(0.5, 0.25)), AdamW(betas=(0.5, 0.25))])
def test_betas_reach_the_optimizer(optimizer):
    assert build_optimizer([nn.Parameter(torch.zeros(1))], optimizer).defaults["betas"] == (0.5, 0.25)
