"""Models that a site trains for itself beside the global one, and scores once, at the end of the study.

They take the same batches, rounds and settings as the global training. What they learn stays on the site's disk, by
round: the test is of the round that the study has chosen. The global model is not changed by them, nor are its bits.
"""

import time
from collections.abc import Callable, Mapping

import torch

from client import local_layers
from client.model import parameters
from client.study_setup import StudySetup
from client.training import fit, losses, penalty
from common import log, seeds, wire
from common.config import Ditto, LocalHead, NoPersonal, OwnModel, own_models
from common.metrics import Score
from common.weights import Array, Arrays


def names(plan: wire.RoundPlan) -> tuple[OwnModel, ...]:
    """The models of its own that this site has in the plan's study; none at a site that only scores."""
    return own_models(plan.study.personalisation) if plan.site in plan.study.sites.train else ()


def scores(
    plan: wire.RoundPlan, setup: StudySetup, first: Callable[[], Arrays], score: Callable[[], Score]
) -> dict[OwnModel, Score]:
    """The score of each, as the round before the plan's left it. `first` gives the first weights.

    The global model is loaded again before this returns.
    """
    found = {}
    for name in names(plan):
        _load(name, plan, setup, first)
        found[name] = score()
    if found:
        _load_global(plan, setup)
    return found


def train(
    plan: wire.RoundPlan, setup: StudySetup, first: Callable[[], Arrays], device: torch.device
) -> float:
    """Train each for one round and keep it; returns the seconds. Raises what `fit` raises, and StorageError.

    The weights in the setup's model are of no use afterwards.
    """
    started, study = time.monotonic(), plan.study
    for name in names(plan):
        _load_global(plan, setup)
        parts, pull = _parts(name, plan, setup), None
        parameters.freeze(setup.model, parts)
        if name == "personal" and isinstance(study.personalisation, Ditto):
            pull = penalty.proximal(setup.model, study.personalisation.mu)
        _load(name, plan, setup, first)
        fitted = fit.fit(
            setup.model,
            setup.store.images("train", augmentation=study.local.augmentation),
            study.local,
            parts=parts,
            progress=fit.StudyPosition(
                plan.round, study.rounds, seeds.derive(study.seed, plan.site, "passes")
            ),
            penalty=pull,
            device=device,
            seed=seeds.derive(study.seed, plan.site, plan.round),
            num_classes=len(study.classes),
            loss=losses.of_study(
                study.model, study.local, setup.store.class_counts("train"), plan.class_counts
            ),
            class_counts=plan.class_counts,
            optimizer_state=setup.state.optimizer_arrays(plan.round, name)
            if study.local.keeps_optimizer_state
            else None,
            most_at_once=setup.most_at_once,
            further=setup.further,
        )
        if fitted.optimizer_state:
            setup.state.keep_optimizer(plan.round, fitted.optimizer_state, name)
        kept = {**parameters.shared_arrays(setup.model, parts), **parameters.local_arrays(setup.model, parts)}
        setup.state.keep_own(name, plan.round, kept, plan.best)
        log.event(
            f"round {plan.round}: {name} model trained, loss {fitted.mean_loss:.3f}, {fitted.seconds:.1f} s"
        )
    return time.monotonic() - started


def _parts(name: OwnModel, plan: wire.RoundPlan, setup: StudySetup) -> parameters.TensorNames:
    """What of the network is trained for this model, and kept."""
    match plan.study.personalisation:
        case LocalHead() if name == "personal":
            head = parameters.head_names(setup.model)
            rest = [*setup.parts.shared, *setup.parts.local, *setup.parts.frozen]
            return parameters.TensorNames(head, (), tuple(other for other in rest if other not in head))
        case NoPersonal() | LocalHead() | Ditto():
            return setup.parts


def _load(name: OwnModel, plan: wire.RoundPlan, setup: StudySetup, first: Callable[[], Arrays]) -> None:
    """Put the model as the last round before the plan's left it into the setup's network."""
    parts = _parts(name, plan, setup)
    kept = setup.state.own_arrays(name, before_round=plan.round)
    _load_global(plan, setup)
    if kept is not None:
        parameters.load_shared(setup.model, parts, _only(kept, parts.shared))
        parameters.load_local(setup.model, parts, _only(kept, parts.local))
    elif name == "alone" and plan.round > 1:
        parameters.load_shared(setup.model, setup.parts, first())
        parameters.load_local(setup.model, setup.parts, setup.first_local)


def _load_global(plan: wire.RoundPlan, setup: StudySetup) -> None:
    parameters.load_shared(setup.model, setup.parts, plan.network)
    local_layers.load(setup, plan.site, before_round=plan.round, trains=plan.train)


def _only(arrays: Mapping[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
    return {name: arrays[name] for name in wanted}
