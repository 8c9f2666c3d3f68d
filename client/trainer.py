"""Trainer: the long-lived process that owns a hospital's images, its device and its policy.

It gets a plan and answers with counts and a delta, if the hospital's policy allows it and after the audit
log has recorded it. One study at a time is kept warm: the model stays
on the device and the decoded images in memory from round to round, so a round costs its
training and nothing else. Plans are data; there is no way to hand this process code.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import assert_never

import torch

from client import own_models
from client.config import SiteConfig
from client.governance import (
    audit,
    audit_fields,
    failure_report,
    image_hashes,
    policy,
    score_cells,
    small_cells,
)
from client.governance.facts import BuiltStudy
from client.governance.hash_chain import Fields, sha256
from client.heads import features, steps
from client.model import parameters
from client.permission import Permission, Received
from client.study_setup import StudySetup, first_weights, set_up
from client.training import evaluate, exposure, fit, losses, penalty, update
from client.training.hardware import determinism
from client.training.hardware.device import choose_device, device_name
from client.training.state import control_variates
from client.training.state.local_state import SiteState
from common import log, seeds, wire
from common.config import OwnModel, StudyConfig
from common.config.types import ScoredSide
from common.errors import PolicyRefusal, SiteDataError, StorageError, WeightsMissing, WireError
from common.heads import below
from common.metrics import Score
from common.weights import Arrays, digest
from common.wire import codec, compact


@dataclass(frozen=True)
class Answered:
    """The last answer, kept for a plan that is sent again."""

    plan_id: str
    reply: bytes
    audit_fields: Fields
    """Entry of the audit log."""


@dataclass(frozen=True)
class Undecided:
    """The last question that waits for a person, which the server repeats: the audit log has it once."""

    request: str
    """SHA-256 of the plan."""
    reply: str
    """SHA-256 of the answer."""


class Trainer:
    """Answers plans for one site. Not thread-safe: the link hands in one plan at a time."""

    def __init__(
        self,
        site: SiteConfig,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        pause: Callable[[float], None] = time.sleep,
        turn: int = 0,
    ) -> None:
        """`turn` is this trainer's number among those of its machine, which take turns over the GPUs."""
        self._site = site
        self._audit = audit.Audit(site.state_dir, clock)
        self._permission = Permission(site, self._audit, clock, pause)
        self._device = choose_device(site.device, turn)
        self._setup: StudySetup | None = None
        self._answered: Answered | None = None
        self._undecided: Undecided | None = None
        self._shown: tuple[StudySetup, tuple[image_hashes.Shown, ...]] | None = None
        self._table: steps.FeatureTable | None = None
        self._received: tuple[StudySetup, Arrays] | None = None
        if site.threads is not None:
            torch.set_num_threads(site.threads)
        determinism.apply("exact")

    def answer(self, request: bytes) -> bytes:
        """One plan's bytes in, one answer's bytes out; every error becomes a Failure.

        A plan that was answered before is answered from memory: a gateway that lost its
        connection asks again, and a site must not train twice for one round.
        """
        plan_id, started = "unknown", time.monotonic()
        try:
            plan, received = self._read(request)
            plan_id = plan.plan_id
            if self._answered is None or self._answered.plan_id != plan_id:
                answer = self._carry_out(plan, received)
                reply = codec.to_bytes(answer)
                policy.enforce_answer(answer, len(reply), self._site.policy)
                if isinstance(answer, wire.ApprovalAnswer):  # never kept: a person may decide at any moment
                    self._note_approval(request, answer, reply)
                    return reply
                self._answered = Answered(plan_id, reply, audit_fields.sent(reply, answer))
            self._audit.append("sent", self._answered.audit_fields)
        except Exception as error:  # only the kind of an error may leave
            return self._fail(error, plan_id, time.monotonic() - started)
        return self._answered.reply

    def audit_head(self) -> str:
        """Hash of the audit log's last line, which goes to the gateway with an answer and is signed there."""
        return self._audit.head

    def _read(self, request: bytes) -> tuple[wire.Plan | wire.Answer, Received]:
        """The message in `request`, which is noted before anything is done with it."""
        plan, arrays_digest = None, ""
        try:
            plan = codec.from_bytes(request)
            if isinstance(plan, wire.RoundPlan):
                plan = update.whole_plan(plan, SiteState(self._site.state_dir, plan.study))
            # A control variate is no part of the weights, whose digest a head names, too.
            arrays = plan.network if isinstance(plan, wire.RoundPlan) else wire.arrays_of(plan)
            if arrays:
                arrays_digest = digest(arrays)
            if isinstance(plan, wire.RoundPlan) and plan.result not in (None, arrays_digest):
                raise WeightsMissing("the change does not lead to the weights that the plan names")
        finally:
            if self._undecided is None or self._undecided.request != sha256(request):
                self._audit.append("plan", audit_fields.received(request, plan, arrays_digest))
        return plan, Received(len(request), arrays_digest)

    def _note_approval(self, request: bytes, answer: wire.ApprovalAnswer, reply: bytes) -> None:
        undecided = Undecided(sha256(request), sha256(reply))
        if undecided != self._undecided:
            self._audit.append("sent", audit_fields.sent(reply, answer))
        self._undecided = undecided

    def _fail(self, error: Exception, plan_id: str, seconds: float) -> bytes:
        """`seconds` is what the plan has cost, which counts for the day as an answer's does."""
        failure = failure_report.failure(error, plan_id, self._site.name)
        reply = codec.to_bytes(failure)
        try:
            self._audit.append(
                "refusal" if failure.error == "policy" else "failure", audit_fields.failed(failure)
            )
            self._audit.append("sent", {**audit_fields.sent(reply, failure), "seconds": round(seconds, 3)})
        except StorageError as unwritten:  # an unrecorded failure must not leave
            return codec.to_bytes(failure_report.failure(unwritten, plan_id, self._site.name))
        return reply

    def _carry_out(self, plan: wire.Plan | wire.Answer, received: Received) -> wire.Answer:
        if plan.site != self._site.name:
            raise PolicyRefusal(
                f"the server enrolled this site as {plan.site!r}, its site.yaml says {self._site.name!r}; "
                "make the two agree",
                reason="the plan is for another site",
            )
        match plan:
            case wire.ApprovalPlan():
                return self._permission.approval(plan, received)
            case wire.EnrolPlan():
                approval_now = self._permission.approval_now(plan, received)
                if approval_now.decision != "yes":
                    return approval_now
                return self._enrol(plan, self._ready(plan, received))
            case wire.RoundPlan():
                return self._round(plan, self._ready(plan, received), received.arrays_digest)
            case wire.HeadPlan():
                return self._heads(plan, self._ready(plan, received))
            case wire.OverlapPlan():
                return self._compare(plan, self._ready(plan, received))
            case (
                wire.ApprovalAnswer()
                | wire.Enrolment()
                | wire.RoundAnswer()
                | wire.HeadAnswer()
                | wire.OverlapAnswer()
                | wire.Failure()
            ):
                raise PolicyRefusal(f"found an answer of kind {plan.kind!r} where a plan was expected")
            case _:
                assert_never(plan)

    def _ready(self, plan: wire.Plan, received: Received) -> StudySetup:
        """The setup for a plan. Raises PolicyRefusal if this hospital did not agree to it."""
        rules, study = self._site.policy, plan.study
        # Before anything is built: an encoder may be looked up on a hub.
        facts = self._permission.require(plan, received)
        if study.overlap is not None and not isinstance(plan, wire.RoundPlan):
            image_hashes.key(self._site.overlap_secret, study)  # refused now, not after the images are read
        setup = self._set_up(study)
        policy.enforce(plan, rules, replace(facts, built=self._built(plan, setup, facts.num_answered)))
        self._permission.keep(plan, received)
        if rules.max_weight_change is not None and (weights := wire.weights_of(plan)):
            self._received = setup, weights
        return setup

    def _built(self, plan: wire.Plan, setup: StudySetup, num_answered: int) -> BuiltStudy:
        """Facts about the plan that need the model or the images."""
        built = BuiltStudy(
            setup.store.class_counts("train"),
            parameters.layout(setup.model, setup.parts),
            setup.weights_digest,
        )
        if self._site.policy.max_weight_change is not None:
            built = replace(built, weight_change=self._weight_change(plan, setup, num_answered))
        if not isinstance(plan, wire.RoundPlan):
            return built
        if not plan.train or sum(built.train_counts) == 0:
            return built
        exposed = exposure.exposure(
            setup.store.images("train").labels_N,
            [row.group_key for row in setup.store.manifest.on("train")],
            plan.study.local,
            seeds.derive(plan.study.seed, plan.site, plan.round),
            _position(plan),
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
                change, control_variates.shift(plan, setup.store.images("train").labels_N, _position(plan))
            )
        return change

    def _enrol(self, plan: wire.EnrolPlan, setup: StudySetup) -> wire.Enrolment:
        if plan.first_round == 1:
            setup.state.forget()
        train, validation, test = (setup.store.class_counts(side) for side in ("train", "validation", "test"))
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
            train_counts=train,
            validation_counts=validation,
            test_counts=test,
            withheld=small_cells.withholds(self._site.policy),
            device=device_name(self._device),
            images=setup.store.summary(self._site.policy.min_cell),
            weights=first_weights(setup, self._site) if plan.want_weights else {},
        )

    def _compare(self, plan: wire.OverlapPlan, setup: StudySetup) -> wire.OverlapAnswer:
        study = plan.study
        key = image_hashes.key(self._site.overlap_secret, study)
        images = self._shown[1] if self._shown is not None and self._shown[0] is setup else None
        if images is None:
            trains = plan.site in study.sites.train
            manifest = setup.store.manifest
            rows = manifest.rows if trains else (*manifest.on("validation"), *manifest.on("test"))
            images = image_hashes.shown(rows, self._site.threads)
            self._shown = setup, images
        counts = image_hashes.list_shared(self._site.state_dir, key, images, plan.shared)
        if counts:
            matches = ", ".join(f"{number} {match}" for match, number in counts.items())
            log.warn(
                f"images of this site are also at a training site ({matches}): {image_hashes.FILE} in state_dir lists "
                "them. Take them out of the data, or the study's figures on this site are not of unseen images"
            )
        else:
            log.event(f"{len(images)} images are compared with other sites', as keyed hashes")
        return image_hashes.answer(plan, key, images)

    def _round(self, plan: wire.RoundPlan, setup: StudySetup, arrays_digest: str) -> wire.RoundAnswer:
        study, layout = plan.study, parameters.layout(setup.model, setup.parts)
        if compact.down(study.transport).is_compact:
            setup.state.keep_received(plan.round, plan.network, layout, arrays_digest)
        if plan.notice is not None:
            log.warn(f"the server refused this site's last answer: {plan.notice}", round=plan.round)
        received = plan.network
        parameters.load_shared(setup.model, setup.parts, received)
        parameters.load_local(
            setup.model, setup.parts, setup.state.local_arrays(before_round=plan.round) or setup.first_local
        )

        started = time.monotonic()
        scores = {side: self._score(setup, side) for side in dict.fromkeys(plan.score)}
        own: dict[OwnModel, Score] = {}
        first = partial(first_weights, setup, self._site)
        if "test" in plan.score and not plan.train:
            own = own_models.scores(plan, setup, first, lambda: self._score(setup, "test"))
        evaluate_s = time.monotonic() - started
        if not plan.train:
            scored = " and ".join(f"{score.num_images} {side}" for side, score in scores.items())
            log.event(f"round {plan.round}: scored {scored or 'no'} images")
            return _answer(plan, scores, own=own, evaluate_s=evaluate_s)

        control = control_variates.ControlVariates(plan, setup.parts, setup.model, setup.state)
        fitted = fit.fit(
            setup.model,
            setup.store.images("train", augmentation=study.local.augmentation),
            study.local,
            parts=setup.parts,
            progress=_position(plan),
            penalty=penalty.build_penalty(study.algorithm, setup.model, control.correction),
            device=self._device,
            seed=seeds.derive(study.seed, plan.site, plan.round),
            num_classes=len(study.classes),
            loss=losses.of_study(
                study.model, study.local, setup.store.class_counts("train"), plan.class_counts
            ),
            class_counts=plan.class_counts,
            optimizer_state=setup.state.optimizer_arrays(plan.round)
            if study.local.keeps_optimizer_state
            else None,
            most_at_once=setup.most_at_once,
        )
        self._require_many(setup, fitted)
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
        log.event(
            f"round {plan.round}: trained {fitted.num_steps} steps on {fitted.num_examples} images, "
            f"loss {fitted.mean_loss:.3f}, {fitted.seconds:.1f} s"
        )
        own_s = own_models.train(plan, setup, first, self._device)
        return _answer(plan, scores, evaluate_s=evaluate_s, fitted=fitted, delta=delta, own_s=own_s)

    def _require_many(self, setup: StudySetup, fitted: fit.TrainingResult) -> None:
        """Raise PolicyRefusal if what was trained is mostly one patient's."""
        groups = [row.group_key for row in setup.store.manifest.on("train")]
        policy.enforce_slopes(exposure.largest_share(fitted.slopes_N, groups), self._site.policy)

    def _score(self, setup: StudySetup, side: ScoredSide) -> Score:
        """The model as it is now on the images of one side."""
        return evaluate.evaluate(
            setup.model,
            setup.store.images(side, augmentation="none"),
            num_classes=len(setup.study.classes),
            device=self._device,
            precision=setup.study.local.precision,
            most_at_once=setup.most_at_once,
            num_bins=self._site.policy.histogram_bins,
            counting=self._counting(setup, side),
        )

    def _counting(self, setup: StudySetup, side: ScoredSide) -> evaluate.Counting | None:
        """How the images of a side are counted if the policy keeps cells of few patients back; else None."""
        rules = self._site.policy
        if rules.min_score_cell is None:
            return None
        return partial(
            score_cells.score,
            patients_N=[row.group_key for row in setup.store.manifest.on(side)],
            least=rules.min_score_cell,
            num_bins=rules.histogram_bins,
        )

    def _heads(self, plan: wire.HeadPlan, setup: StudySetup) -> wire.HeadAnswer:
        """One step towards classical heads; the features of these weights are computed once."""
        layer = None if plan.study.heads is None else plan.study.heads.layer
        weights = below("weights", plan.arrays)
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
        place = steps.Place(
            self._site.state_dir,
            setup.state.folder,
            self._site.threads or os.cpu_count() or 1,
            rules.min_cell,
            rules.histogram_bins,
            rules.min_score_cell,
        )
        answer = steps.carry_out(plan, self._table, place)
        log.event(f"heads: answered {plan.step.kind} in {answer.seconds:.1f} s", round=plan.round)
        return answer

    def _features(
        self, plan: wire.HeadPlan, setup: StudySetup, weights: Arrays, layer: str | None
    ) -> steps.FeatureTable:
        cache = features.Cache(setup.state.folder / "features")
        key = f"{plan.weights_digest} {layer}"
        if weights:
            parameters.load_shared(setup.model, setup.parts, weights)
            kept = setup.state.local_arrays(before_round=plan.round + 1)
            parameters.load_local(setup.model, setup.parts, kept or setup.first_local)
            sides = features.of(
                setup.model,
                setup.store,
                cache,
                layer=layer,
                device=self._device,
                precision=plan.study.local.precision,
            )
            cache.remember(key, cache.path(setup.model, setup.store, layer, plan.study.local.precision))
            return steps.FeatureTable(plan.weights_digest, sides)
        path = cache.known(key)  # this trainer was restarted in the middle of the heads
        rows = None if path is None else cache.read(path, len(setup.store.manifest.rows))
        if rows is None:
            raise SiteDataError(
                "the features of these weights are no longer on disk; the study has to send the weights again"
            )
        return steps.FeatureTable(plan.weights_digest, features.sides(setup.store, *rows))

    def _set_up(self, study: StudyConfig) -> StudySetup:
        """The setup of this study; the one in use is kept if it is of the same study."""
        if self._setup is not None and self._setup.study == study:
            return self._setup
        self._table = None
        self._received = None
        self._setup = None  # the former study's model and images go before new ones come
        self._setup = set_up(study, self._site, self._device)
        return self._setup


def _position(plan: wire.RoundPlan) -> fit.StudyPosition:
    return fit.StudyPosition(
        plan.round, plan.study.rounds, seeds.derive(plan.study.seed, plan.site, "passes")
    )


def _answer(
    plan: wire.RoundPlan,
    scores: Mapping[ScoredSide, Score],
    *,
    evaluate_s: float,
    own: Mapping[OwnModel, Score] | None = None,
    fitted: fit.TrainingResult | None = None,
    delta: Arrays | None = None,
    own_s: float = 0.0,
) -> wire.RoundAnswer:
    return wire.RoundAnswer(
        plan_id=plan.plan_id,
        site=plan.site,
        round=plan.round,
        scores=dict(scores),
        own=dict(own or {}),
        num_examples=fitted.num_examples if fitted else 0,
        num_steps=fitted.num_steps if fitted else 0,
        train_loss=fitted.mean_loss if fitted else None,
        train_s=fitted.seconds + own_s if fitted else 0.0,
        evaluate_s=evaluate_s,
        delta=delta or {},
    )
