"""The answer to an enrolment: what this site has and builds for the study, in counts and hashes."""

import torch

from client.config import SiteConfig
from client.governance import small_cells
from client.model import parameters
from client.study_setup import StudySetup, first_weights
from client.training.hardware.device import device_name
from common import log, wire


def answer(
    plan: wire.EnrolPlan,
    setup: StudySetup,
    site: SiteConfig,
    device: torch.device,
    train_counts: tuple[int, ...],
) -> wire.Enrolment:
    """Counts, layout and hashes of `setup`. What was kept of a study is dropped when it begins again. `train_counts`
    have noise in a study with privacy, in which sizes and colours of the images stay here.
    """
    if plan.first_round == 1:
        setup.state.forget()
    train, validation, test = (setup.store.class_counts(side) for side in ("train", "validation", "test"))
    if setup.is_private:
        validation = test = (0,) * len(train)
    log.event(
        f"enrolled in study {plan.study.name}: {sum(train)} training, {sum(validation)} validation, "
        f"{sum(test)} test images"
    )
    return wire.Enrolment(
        plan_id=plan.plan_id,
        site=plan.site,
        layout=parameters.layout(setup.model, setup.parts),
        weights_digest=setup.weights_digest,
        frozen_digest=setup.frozen_digest,
        preprocessing=setup.preprocessing.model_dump(mode="json"),
        train_counts=train_counts,
        validation_counts=validation,
        test_counts=test,
        withheld=small_cells.withholds(setup.rules(site.policy)),
        device=device_name(device, len(site.devices)),
        images=None if setup.is_private else setup.store.summary(site.policy.min_cell),
        weights=first_weights(setup, site) if plan.want_weights else {},
    )
