"""Local work: how far a site's steps of one round could take it, from the study and the number of steps.

The server computes it and asks no site, so a site can lie about it only by its number of steps, and admission compares
that with the images that the site enrolled with.
"""

import math

from common.config import DpSgdConfig, LocalConfig, Sgd, StudyConfig
from common.config.learning_rate import learning_rates


def rate_sum(study: StudyConfig, number: int, num_steps: int) -> float:
    """Sum of the learning rates of round `number`: plain SGD moves a weight by this times its mean gradient."""
    return math.fsum(learning_rates(study.local, number, study.rounds, num_steps))


def way(study: StudyConfig, number: int, num_steps: int) -> float:
    """Length of a site's way in round `number`, in steps at the full learning rate.

    It is the norm of FedNova's vector a: how often the round counts the gradients in all. With momentum a gradient goes
    on to move the weights in later steps (Wang et al. 2020, arXiv:2007.07481, section 4 and appendix B). An adaptive
    step is about as long as its learning rate.
    """
    momentum = study.local.optimizer.momentum if isinstance(study.local.optimizer, Sgd) else 0.0
    rates = learning_rates(study.local, number, study.rounds, num_steps)
    counted = (
        1 - momentum ** (step + 1) for step in range(num_steps)
    )  # times 1 / (1 - momentum), for all sites
    steps = math.fsum(rate * share for rate, share in zip(rates, counted, strict=True))
    return steps / (study.local.optimizer.lr * (1 - momentum))


def possible_steps(local: LocalConfig, num_images: int, privacy: DpSgdConfig | None = None) -> range:
    """Numbers of steps that a round can have at a site with so many training images."""
    if privacy is not None:
        steps = privacy.num_steps(local)
        return range(steps, steps + 1)
    if local.num_epochs is None:
        steps = local.steps or 1
        return range(steps, steps + 1)
    size = num_images if local.batch_size == "all" else min(local.batch_size, num_images)
    # A last batch of one image joins the one before it.
    least, most = max(1, num_images // size), math.ceil(num_images / size)
    return range(max(1, math.floor(local.num_epochs * least)), math.ceil(local.num_epochs * most) + 1)
