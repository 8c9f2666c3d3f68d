"""Trainer: the long-lived process that owns a hospital's images, its device and its policy.

It gets a plan and answers with counts and a delta, if the hospital's policy allows it and after the audit
log has recorded it. One study at a time is kept warm: the model stays
on the device and the decoded images in memory from round to round, so a round costs its
training and nothing else. Plans are data; there is no way to hand this process code.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import assert_never

import torch

from client.answers import census, enrolment, masks
from client.answers.facts import PlanFacts
from client.answers.heads import HeadAnswers
from client.answers.overlap import OverlapAnswers
from client.answers.rounds import RoundAnswers
from client.config import SiteConfig
from client.governance import audit, audit_fields, failure_report, image_hashes, policy
from client.governance.hash_chain import Fields, sha256
from client.permission import Permission, Received
from client.privacy.budget import Budget
from client.study_setup import StudySetup, set_up
from client.training import update
from client.training.hardware import determinism
from client.training.hardware.device import choose_devices
from client.training.state.local_state import SiteState
from common import wire
from common.config import StudyConfig
from common.errors import PolicyRefusal, StorageError, WeightsMissing
from common.weights import digest
from common.wire import codec


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
        budget = Budget(site, self._audit, clock)
        self._permission = Permission(site, self._audit, clock, pause, budget)
        self._device, *self._further = choose_devices(site.devices, turn)
        self._setup: StudySetup | None = None
        self._answered: Answered | None = None
        self._undecided: Undecided | None = None
        self._facts = PlanFacts(site, budget)
        self._overlap = OverlapAnswers(site)
        self._rounds = RoundAnswers(site, self._device, budget)
        self._heads = HeadAnswers(site, self._device, budget)
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
                policy.enforce_answer(answer, len(reply), self._site.policy, is_noisy=self._is_noisy(plan))
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

    def _is_noisy(self, plan: wire.Plan | wire.Answer) -> bool:
        """Whether what this site answers has noise for differential privacy on it."""
        study: StudyConfig | None = getattr(plan, "study", None)
        return study is not None and study.privacy is not None and self._site.name in study.sites.train

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
                return self._enrolment(plan, received)
            case wire.RoundPlan():
                return self._round(plan, received)
            case wire.HeadPlan():
                setup = self._ready(plan, received)
                return self._heads.answer(plan, setup, self._facts.train_counts(plan, setup))
            case wire.MaskPlan():
                setup = self._ready(plan, received)
                counts = self._facts.train_counts(plan, setup)
                return masks.answer(plan, self._site, lambda: census.kept(setup, counts).words)
            case wire.OverlapPlan():
                return self._overlap.answer(plan, self._ready(plan, received))
            case (
                wire.ApprovalAnswer()
                | wire.Enrolment()
                | wire.RoundAnswer()
                | wire.HeadAnswer()
                | wire.OverlapAnswer()
                | wire.MaskAnswer()
                | wire.Failure()
            ):
                raise PolicyRefusal(f"found an answer of kind {plan.kind!r} where a plan was expected")
            case _:
                assert_never(plan)

    def _enrolment(self, plan: wire.EnrolPlan, received: Received) -> wire.Enrolment:
        setup = self._ready(plan, received)
        counts = self._facts.train_counts(plan, setup)
        return enrolment.answer(plan, setup, self._site, self._device, counts)

    def _round(self, plan: wire.RoundPlan, received: Received) -> wire.RoundAnswer:
        setup = self._ready(plan, received)
        counts = self._facts.train_counts(plan, setup)
        return self._rounds.answer(plan, setup, received.arrays_digest, counts)

    def _ready(self, plan: wire.Plan, received: Received) -> StudySetup:
        """The setup for a plan. Raises PolicyRefusal if this hospital did not agree to it."""
        rules, study = self._site.policy, plan.study
        # Before anything is built: an encoder may be looked up on a hub.
        facts = self._permission.require(plan, received)
        if study.overlap is not None and not isinstance(plan, wire.RoundPlan):
            image_hashes.key(self._site.overlap_secret, study)  # refused now, not after the images are read
        if study.secure_aggregation is not None and plan.site in study.sites.train:
            masks.require_roster(self._site)
        setup = self._set_up(study)
        policy.enforce(plan, rules, replace(facts, built=self._facts.of(plan, setup, facts.num_answered)))
        self._permission.keep(plan, received)
        self._facts.keep(plan, setup)
        return setup

    def _set_up(self, study: StudyConfig) -> StudySetup:
        """The setup of this study; the one in use is kept if it is of the same study."""
        if self._setup is not None and self._setup.study == study:
            return self._setup
        self._heads.forget()
        self._facts.forget()
        if self._setup is not None and self._setup.further is not None:
            self._setup.further.close()
        self._setup = None  # the former study's model and images go before new ones come
        self._setup = set_up(study, self._site, self._device, self._further)
        return self._setup
