"""The answer to a step towards classical heads, from features of the images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from client import local_layers
from client.answers import masks
from client.config import SiteConfig
from client.governance.policy import allows_calibration
from client.heads import features, own_heads, steps
from client.model import parameters
from client.privacy.budget import Budget, scores_question
from client.privacy.head_sums import noisy_sums
from client.privacy.scores import confusion_of_patients, noisy_scores
from client.study_setup import StudySetup
from common import log, wire
from common.errors import SiteDataError, WireError
from common.heads import Floats
from common.metrics import Score
from common.weights import Array, Arrays, digest


class HeadAnswers:
    """Keeps the features of the weights that came last: they are computed once for all steps."""

    def __init__(self, site: SiteConfig, device: torch.device, budget: Budget) -> None:
        self._site = site
        self._device = device
        self._budget = budget
        self._table: own_heads.FeatureTable | None = None

    def forget(self) -> None:
        """Drop the features, which are of another study."""
        self._table = None

    def answer(self, plan: wire.HeadPlan, setup: StudySetup, train_counts: Sequence[int]) -> wire.HeadAnswer:
        """One step towards them. `train_counts` have noise in a study with privacy, whose sums are charged first.

        Raises WireError if the weights were damaged, SiteDataError if features are gone, PolicyRefusal and
        StorageError.
        """
        layer = None if plan.study.heads is None else plan.study.heads.layer
        weights = plan.network
        if weights and digest(weights) != plan.weights_digest:
            raise WireError(
                "the received weights do not have the digest that the plan names; they were damaged on the way"
            )
        if self._table is None or self._table.weights_digest != plan.weights_digest:
            self._table = None
            self._table = self._features(plan, setup, weights, layer)
        if weights:
            steps.keep_network(
                setup.state.folder,
                plan.study,
                parameters.all_arrays(setup.model, setup.parts),
                plan.weights_digest,
            )
        rules = self._site.policy
        place = own_heads.Place(
            self._site.state_dir,
            setup.state.folder,
            self._site.threads or os.cpu_count() or 1,
            rules.min_cell,
            rules.histogram_bins,
            rules.min_score_cell,
            rules.max_patient_share,
            rules.heads_may_leave,
            allows_calibration(rules),
        )
        if setup.is_private:
            place = replace(
                place,
                noisy_counts=train_counts,
                noisy_sums=partial(self._noisy_sums, plan, setup),
                noisy_scores=partial(self._noisy_scores, plan, setup) if self._scores(plan) else None,
                epsilon=partial(self._budget.of_study, plan.study),
            )
        answer = steps.carry_out(plan, self._table, place)
        log.event(f"heads: answered {plan.step.kind} in {answer.seconds:.1f} s", round=plan.round)
        has_masks = plan.study.secure_aggregation is not None
        return masks.masked_heads(plan, self._site, answer) if has_masks else answer

    def _noisy_sums(
        self, plan: wire.HeadPlan, setup: StudySetup, train: features.Features
    ) -> dict[str, Array]:
        return noisy_sums(
            plan.study,
            plan.weights_digest,
            train.features_NF,
            train.labels_N,
            train.groups_N,
            self._budget,
            setup.state.folder,
        )

    def _scores(self, plan: wire.HeadPlan) -> bool:
        privacy = plan.study.privacy
        return privacy is not None and privacy.scores is not None and self._site.policy.scores

    def _noisy_scores(
        self,
        plan: wire.HeadPlan,
        setup: StudySetup,
        probabilities: Mapping[str, Floats],
        test: features.Features,
    ) -> Mapping[str, Score]:
        matrices = {
            title: confusion_of_patients(found_NC, test.labels_N, test.groups_N)
            for title, found_NC in probabilities.items()
        }
        question = scores_question(plan)
        assert question is not None
        return noisy_scores(plan.study, question, matrices, self._budget, setup.state.folder)

    def _features(
        self, plan: wire.HeadPlan, setup: StudySetup, weights: Arrays, layer: str | None
    ) -> own_heads.FeatureTable:
        cache = features.Cache(setup.state.folder / "features")
        key = f"{plan.weights_digest} {layer}"
        if weights:
            parameters.load_shared(setup.model, setup.parts, weights)
            local_layers.load(setup, plan.site, before_round=plan.round + 1)
            sides = features.of(
                setup.model,
                setup.store,
                cache,
                layer=layer,
                device=self._device,
                precision=plan.study.local.precision,
                private=setup.is_private,
            )
            cache.remember(key, cache.path(setup.model, setup.store, layer, plan.study.local.precision))
            return own_heads.FeatureTable(plan.weights_digest, sides)
        path = cache.known(key)  # this trainer was restarted in the middle of the heads
        rows = None if path is None else cache.read(path, len(setup.store.manifest.rows))
        if rows is None:
            raise SiteDataError(
                "the features of these weights are no longer on disk; the study has to send the weights again"
            )
        return own_heads.FeatureTable(plan.weights_digest, features.sides(setup.store, *rows))
