"""Learning rates of a round's steps, as a site takes them and as the server divides by them.

They follow from the study alone: the schedule, the place of the round, the number of steps. So a server that has to
know how far a site's steps could go (FedNova, SCAFFOLD) computes it, and asks no site.
"""

import math
from typing import assert_never

from common.config import training


def learning_rates(local: training.LocalConfig, number: int, rounds: int, num_steps: int) -> list[float]:
    """Learning rate of each step of round `number`, from 1, of `rounds`."""
    return [
        local.optimizer.lr
        * lr_factor(local.schedule, share_done(number, rounds, step, num_steps))
        * rise(local.schedule.round_warmup, (step + 0.5) / num_steps)
        for step in range(num_steps)
    ]


def share_done(number: int, rounds: int, step: int, num_steps: int) -> float:
    """Share of the study's training that lies before the middle of `step`, counted from 0, of round `number`.

    The middle, because at its ends a warm-up or a cosine is 0, and a round of one step
    would train nothing.
    """
    return (number - 1 + (step + 0.5) / num_steps) / rounds


def rise(warmup: float, share: float) -> float:
    """Factor on the learning rate after `share` of a warm-up's whole, over `warmup` of which it rises from 0."""
    return min(1.0, share / warmup) if warmup > 0 else 1.0


def lr_factor(schedule: training.Schedule, share: float) -> float:
    """Factor on the optimizer's `lr` after `share` of the whole study."""
    risen = rise(schedule.warmup, share)
    match schedule:
        case training.Constant():
            return risen
        case training.Cosine(warmup=warmup, final=final):
            fallen = max(0.0, share - warmup) / (1 - warmup) if warmup < 1 else 0.0
            return risen * (final + (1 - final) * (1 + math.cos(math.pi * fallen)) / 2)
        case training.Step(milestones=milestones, gamma=gamma):
            return risen * gamma ** sum(share >= milestone for milestone in milestones)
        case _:
            assert_never(schedule)
