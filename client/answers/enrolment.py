"""The answer to an enrolment: what this site has and builds for the study, in counts and hashes."""

import torch

from client.answers.census import census
from client.config import SiteConfig
from client.governance import small_cells
from client.model import parameters
from client.study_setup import StudySetup, first_weights
from client.training.hardware.device import device_name
from common import log, wire
from common.errors import SiteDataError


def answer(
    plan: wire.EnrolPlan,
    setup: StudySetup,
    site: SiteConfig,
    device: torch.device,
    train_counts: tuple[int, ...],
) -> wire.Enrolment:
    """Counts, layout and hashes of `setup`. What was kept of a study is dropped when it begins again. `train_counts`
    have noise in a study with privacy, in which sizes and colours of the images stay here. With secure aggregation they
    stay here, too, and so do the counts, which leave as masked numbers. Raises SiteDataError for a site that the server
    cannot see to have nothing to train on.
    """
    if plan.first_round == 1:
        setup.state.forget()
    masked = plan.study.secure_aggregation is not None
    train, validation, test = (setup.store.class_counts(side) for side in ("train", "validation", "test"))
    if masked and plan.study.rounds and not sum(train):
        raise SiteDataError(
            "found no training images of the study's classes, expected some: with secure_aggregation the server does "
            "not see that, so this site cannot enrol"
        )
    shown = census(setup, train_counts)
    log.event(
        f"enrolled in study {plan.study.name}: {sum(train)} training, {sum(validation)} validation, "
        f"{sum(test)} test images" + (", which leave as a part of the sites' sums alone" if masked else "")
    )
    return wire.Enrolment(
        plan_id=plan.plan_id,
        site=plan.site,
        layout=parameters.layout(setup.model, setup.parts),
        weights_digest=setup.weights_digest,
        frozen_digest=setup.frozen_digest,
        preprocessing=setup.preprocessing.model_dump(mode="json"),
        train_counts=() if masked else shown.train,
        validation_counts=() if masked else shown.validation,
        test_counts=() if masked else shown.test,
        withheld=small_cells.withholds(setup.rules(site.policy)),
        device=device_name(device, len(site.devices)),
        images=None if setup.is_private or masked else setup.store.summary(site.policy.min_cell),
        weights=first_weights(setup, site) if plan.want_weights else {},
    )
