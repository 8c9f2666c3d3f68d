"""The answer to a round: scores of the received weights, and what training makes of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from client import local_layers, own_models
from client.answers import calibration, intervals, masks, subgroups
from client.answers.position import position
from client.config import SiteConfig
from client.data.pseudonyms import site_secret
from client.governance import policy, score_cells
from client.heads.steps import keep_network
from client.model import parameters
from client.privacy.budget import Budget, round_charge, scores_question
from client.privacy.scores import Floats, Numbers, confusion_of_patients, noisy_scores
from client.study_setup import StudySetup, first_weights
from client.training import evaluate, exposure, fit, losses, penalty, update
from client.training.private.private_round import PrivateRound
from client.training.state import control_variates
from common import log, seeds, wire
from common.config import OwnModel
from common.config.heads import SOFTMAX
from common.config.types import ScoredSide
from common.metrics import Score
from common.metrics.replicates import Replicates
from common.metrics.subgroups import SubgroupCounts
from common.weights import Arrays
from common.wire import compact


class RoundAnswers:
    """Trains and scores for one site on one device."""

    def __init__(self, site: SiteConfig, device: torch.device, budget: Budget) -> None:
        self._site = site
        self._device = device
        self._budget = budget

    def answer(
        self, plan: wire.RoundPlan, setup: StudySetup, arrays_digest: str, train_counts: Sequence[int]
    ) -> wire.RoundAnswer:
        """Scores of the received weights and, if asked, the change that one round of training makes.

        `arrays_digest` is that of the weights. `train_counts` have noise in a study with privacy, whose round is
        charged before it is trained. Raises what `fit.fit` raises, PolicyRefusal and StorageError.
        """
        study, layout = plan.study, parameters.layout(setup.model, setup.parts)
        if compact.down(study.transport).is_compact:
            setup.state.keep_received(plan.round, plan.network, layout, arrays_digest)
        if plan.notice is not None:
            log.warn(f"the server refused this site's last answer: {plan.notice}", round=plan.round)
        received = plan.network
        parameters.load_shared(setup.model, setup.parts, received)
        local_layers.load(setup, plan.site, before_round=plan.round, trains=plan.train)

        started = time.monotonic()
        scores, tested_NC = self._scores(plan, setup)
        own: dict[OwnModel, Score] = {}
        first = partial(first_weights, setup, self._site)
        if "test" in plan.score and not plan.train:
            own = own_models.scores(plan, setup, first, lambda: self._score(setup, "test", plan))
            self._keep_own_network(plan, setup, arrays_digest)
        calibrated = calibration.counts(plan, setup, self._site.policy, self._device)
        evaluate_s = 0.0 if setup.is_private else time.monotonic() - started
        if not plan.train:
            scored = " and ".join(f"{score.num_images} {side}" for side, score in scores.items())
            log.event(f"round {plan.round}: scored {scored or 'no'} images")
            hidden = None
            if plan.envelopes is not None:
                hidden = masks.masked(plan, arrays_digest, self._site, {}, 0, scores)
            answer = _answer(
                plan,
                scores,
                own=own,
                subgroups=self._subgroups(plan, setup, tested_NC),
                replicates=self._replicates(plan, setup, scores, tested_NC),
                evaluate_s=evaluate_s,
                delta=hidden,
            )
            charged = self._budget.of_study(study) if any(score.noise for score in scores.values()) else None
            answer = answer.model_copy(update={"calibration": calibrated, "epsilon": charged})
            return answer if study.secure_aggregation is None else _without_what_tells_images(answer)

        private = self._private(plan, setup, sum(train_counts))
        control = control_variates.ControlVariates(plan, setup.parts, setup.model, setup.state)
        fitted = fit.fit(
            setup.model,
            setup.store.images("train", augmentation=study.local.augmentation),
            study.local,
            parts=setup.parts,
            progress=position(plan),
            penalty=penalty.build_penalty(study.algorithm, setup.model, control.correction),
            device=self._device,
            seed=seeds.derive(study.seed, plan.site, plan.round),
            num_classes=len(study.classes),
            loss=losses.of_study(study.model, study.local, train_counts, plan.class_counts),
            class_counts=plan.class_counts,
            optimizer_state=setup.state.optimizer_arrays(plan.round)
            if study.local.keeps_optimizer_state
            else None,
            most_at_once=setup.most_at_once,
            further=setup.further,
            private=private,
        )
        if private is None:
            self._require_many(setup, fitted)
        num_examples = fitted.num_examples if private is None else private.num_images
        if fitted.optimizer_state:
            setup.state.keep_optimizer(plan.round, fitted.optimizer_state)
        if setup.parts.local:
            setup.state.keep_local(
                plan.round, parameters.local_arrays(setup.model, setup.parts), best=plan.best
            )
        delta = update.delta(parameters.shared_arrays(setup.model, setup.parts), received)
        control.keep(delta, fitted.rate_sum)
        if (form := compact.up(study.transport)).is_compact:
            seed = seeds.derive(study.seed, plan.site, plan.round, "rounding")
            delta = update.compressed(delta, layout, form, setup.state, plan.round, seed)
        if study.secure_aggregation is not None:
            delta = masks.masked(plan, arrays_digest, self._site, delta, num_examples, scores)
        log.event(
            f"round {plan.round}: trained {fitted.num_steps} steps on {fitted.num_examples} images, "
            f"loss {fitted.mean_loss:.3f}, {fitted.seconds:.1f} s"
        )
        own_s = own_models.train(plan, setup, first, self._device)
        answer = _answer(plan, scores, evaluate_s=evaluate_s, fitted=fitted, delta=delta, own_s=own_s)
        if private is not None:
            answer = _without_what_has_no_noise(answer, num_examples, self._budget.of_study(study))
        return answer if study.secure_aggregation is None else _without_what_tells_images(answer)

    def _keep_own_network(self, plan: wire.RoundPlan, setup: StudySetup, arrays_digest: str) -> None:
        """Keep the network with the layers that stay here, which the operator's run lacks, to predict with. Raises
        StorageError.
        """
        if setup.parts.local and plan.site in plan.study.sites.train:
            network = parameters.all_arrays(setup.model, setup.parts)
            keep_network(setup.state.folder, plan.study, network, arrays_digest)

    def _private(self, plan: wire.RoundPlan, setup: StudySetup, num_images: int) -> PrivateRound | None:
        """What a round with privacy needs, once it is paid for; None in a study without."""
        if plan.study.privacy is None:
            return None
        self._budget.charge(plan.study, f"round {plan.round}", round_charge(plan.study))
        groups = [row.group_key for row in setup.store.manifest.on("train")]
        return PrivateRound(plan.study.privacy, groups, num_images)

    def _require_many(self, setup: StudySetup, fitted: fit.TrainingResult) -> None:
        """Raise PolicyRefusal if what was trained is mostly one patient's."""
        groups = [row.group_key for row in setup.store.manifest.on("train")]
        policy.enforce_slopes(exposure.largest_share(fitted.slopes_N, groups), self._site.policy)

    def _scores(
        self, plan: wire.RoundPlan, setup: StudySetup
    ) -> tuple[dict[ScoredSide, Score], npt.NDArray[np.float64]]:
        """The received weights on each side that the plan asks for, and the probabilities on test images."""
        scores: dict[ScoredSide, Score] = {}
        tested = [np.zeros((0, len(plan.study.classes)))]
        for side in dict.fromkeys(plan.score):
            keep = tested.append if side == "test" else _forget
            scores[side] = self._score(setup, side, plan, keep)
        return scores, np.concatenate(tested)

    def _subgroups(
        self, plan: wire.RoundPlan, setup: StudySetup, tested_NC: npt.NDArray[np.float64]
    ) -> dict[str, SubgroupCounts]:
        """The test at the end by subgroup."""
        if "test" not in plan.score or setup.is_private:  # they have no noise
            return {}
        rows = setup.store.manifest.on("test")
        return subgroups.counts(tested_NC.argmax(axis=1), rows, plan.study, self._site)

    def _replicates(
        self,
        plan: wire.RoundPlan,
        setup: StudySetup,
        scores: Mapping[ScoredSide, Score],
        tested_NC: npt.NDArray[np.float64],
    ) -> Replicates | None:
        """Replicates of the test's patients; None if they are not asked for, or the policy or their number keeps them
        back.
        """
        rules = self._site.policy
        if not wire.asks_for_replicates(plan) or not len(tested_NC) or not intervals.may_leave(rules):
            return None
        rows = setup.store.manifest.on("test")
        return intervals.of_test(
            scores["test"],
            tested_NC,
            setup.store.images("test", augmentation="none").labels_N.cpu().numpy(),
            [row.group_key for row in rows],
            [row.image.key for row in rows],
            secret=site_secret(self._site.state_dir),
            num_bins=rules.histogram_bins,
        )

    def _score(
        self,
        setup: StudySetup,
        side: ScoredSide,
        plan: wire.RoundPlan,
        on_predicted: Callable[[npt.NDArray[np.float64]], None] = lambda _: None,
    ) -> Score:
        """The model as it is now on the images of one side."""
        return evaluate.evaluate(
            setup.model,
            setup.store.images(side, augmentation="none"),
            num_classes=len(setup.study.classes),
            device=self._device,
            precision=setup.study.local.precision,
            most_at_once=setup.most_at_once,
            num_bins=self._site.policy.histogram_bins,
            counting=self._counting(setup, side, plan),
            private=setup.is_private,
            on_predicted=on_predicted,
        )

    def _counting(
        self, setup: StudySetup, side: ScoredSide, plan: wire.RoundPlan
    ) -> evaluate.Counting | None:
        """How the images of a side are counted with noise, or if the policy keeps cells of few patients back; else
        None.
        """
        rules = self._site.policy
        if setup.is_private:
            pays = plan.study.privacy is not None and plan.study.privacy.scores is not None
            return partial(self._noisy, setup, plan) if pays and side == "test" and rules.scores else None
        if rules.min_score_cell is None:
            return None
        return partial(
            score_cells.score,
            patients_N=[row.group_key for row in setup.store.manifest.on(side)],
            least=rules.min_score_cell,
            num_bins=rules.histogram_bins,
        )

    def _noisy(
        self, setup: StudySetup, plan: wire.RoundPlan, probabilities_NC: Floats, labels_N: Numbers
    ) -> Score:
        patients = [row.group_key for row in setup.store.manifest.on("test")]
        matrix_CC = confusion_of_patients(probabilities_NC, labels_N, patients)
        question = scores_question(plan)
        assert question is not None
        noisy = noisy_scores(plan.study, question, {SOFTMAX: matrix_CC}, self._budget, setup.state.folder)
        return noisy[SOFTMAX]


def _forget(_probabilities_BC: npt.NDArray[np.float64]) -> None:
    """Keep nothing of a batch."""


def _without_what_has_no_noise(answer: wire.RoundAnswer, num_images: int, epsilon: float) -> wire.RoundAnswer:
    """The answer as it may leave with privacy: the delta has noise, and so has the number of images."""
    return answer.model_copy(
        update={
            "num_examples": num_images,
            "train_loss": None,
            "train_s": masks.coarse(answer.train_s),
            "epsilon": epsilon,
        }
    )


def _without_what_tells_images(answer: wire.RoundAnswer) -> wire.RoundAnswer:
    """The answer as it may leave under masks: the number of images is among the masked tables, and steps and seconds,
    which follow from it, do not leave or are coarse.
    """
    return answer.model_copy(
        update={
            "num_examples": 0,
            "num_steps": 0,
            "train_s": masks.coarse(answer.train_s),
            "evaluate_s": masks.coarse(answer.evaluate_s),
        }
    )


def _answer(
    plan: wire.RoundPlan,
    scores: Mapping[ScoredSide, Score],
    *,
    evaluate_s: float,
    own: Mapping[OwnModel, Score] | None = None,
    subgroups: Mapping[str, SubgroupCounts] | None = None,
    replicates: Replicates | None = None,
    fitted: fit.TrainingResult | None = None,
    delta: Arrays | None = None,
    own_s: float = 0.0,
) -> wire.RoundAnswer:
    return wire.RoundAnswer(
        plan_id=plan.plan_id,
        site=plan.site,
        round=plan.round,
        scores=dict(scores) if plan.envelopes is None else {},
        score_bins=None
        if plan.envelopes is None
        else min((s.num_bins for s in scores.values()), default=None),
        own=dict(own or {}),
        subgroups=dict(subgroups or {}),
        replicates=replicates,
        num_examples=fitted.num_examples if fitted else 0,
        num_steps=fitted.num_steps if fitted else 0,
        train_loss=fitted.mean_loss if fitted and plan.envelopes is None else None,
        train_s=fitted.seconds + own_s if fitted else 0.0,
        evaluate_s=evaluate_s,
        delta=delta or {},
    )
