"""Facts about a plan that need the model or the images, for the policy to judge."""

from dataclasses import replace

from client.answers.position import position
from client.config import SiteConfig
from client.governance.facts import BuiltStudy
from client.model import parameters
from client.privacy.budget import Budget
from client.privacy.counts import noisy_counts
from client.study_setup import StudySetup, first_weights
from client.training import exposure, update
from client.training.state import control_variates
from common import seeds, wire
from common.weights import Arrays


class PlanFacts:
    """Keeps the weights that came last: the policy limits how far a server moves them."""

    def __init__(self, site: SiteConfig, budget: Budget) -> None:
        self._site = site
        self._budget = budget
        self._received: tuple[StudySetup, Arrays] | None = None

    def keep(self, plan: wire.Plan, setup: StudySetup) -> None:
        """Note the weights of a plan that was allowed."""
        if self._site.policy.max_weight_change is not None and (weights := wire.weights_of(plan)):
            self._received = setup, weights

    def forget(self) -> None:
        """Drop the weights, which are of another study."""
        self._received = None

    def of(self, plan: wire.Plan, setup: StudySetup, num_answered: int) -> BuiltStudy:
        """Facts about the plan that need the model or the images."""
        built = BuiltStudy(
            self.train_counts(plan, setup),
            parameters.layout(setup.model, setup.parts),
            setup.weights_digest,
        )
        if self._site.policy.max_weight_change is not None:
            built = replace(built, weight_change=self._weight_change(plan, setup, num_answered))
        if not isinstance(plan, wire.RoundPlan) or plan.study.privacy is not None:
            return built
        if not plan.train or sum(built.train_counts) == 0:
            return built
        exposed = exposure.exposure(
            setup.store.images("train").labels_N,
            [row.group_key for row in setup.store.manifest.on("train")],
            plan.study.local,
            seeds.derive(plan.study.seed, plan.site, plan.round),
            position(plan),
            len(plan.study.classes),
            plan.study.algorithm,
            parameters.statistics_momentum(setup.model, setup.parts),
            plan.class_counts,
        )
        return replace(
            built,
            fewest_patients=exposed.fewest_patients,
            largest_share=exposed.largest_share,
            largest_share_of_statistics=exposed.largest_share_of_statistics,
            left_out=exposed.left_out,
        )

    def train_counts(self, plan: wire.Plan, setup: StudySetup) -> tuple[int, ...]:
        """Training images per class; with noise in a study with privacy. Raises PolicyRefusal and StorageError."""
        if not setup.is_private:
            return setup.store.class_counts("train")
        groups = [row.group_key for row in setup.store.manifest.on("train")]
        labels = setup.store.images("train").labels_N.tolist()
        return noisy_counts(plan.study, labels, groups, self._budget, setup.state.folder)

    def _weight_change(self, plan: wire.Plan, setup: StudySetup, num_answered: int) -> float:
        """Against the weights received last or, after a restart, those that this site builds, by round answered.

        Rounds that this site missed do not count: a server may leave out as many as it likes. 0 for a plan without
        weights, since heads go on with those that came before.
        """
        weights = wire.weights_of(plan)
        if not weights:
            return 0.0
        if self._received is not None and self._received[0] is setup:
            _, before = self._received
            num_answered = 1
        else:
            before = first_weights(setup, self._site)
        parameters_only = {name for name, _ in setup.model.named_parameters()}
        change = update.relative_change(before, weights, parameters_only) / max(1, num_answered)
        if isinstance(plan, wire.RoundPlan):
            return max(
                change, control_variates.shift(plan, setup.store.images("train").labels_N, position(plan))
            )
        return change
