"""Permission: whether a plan may be carried out at this site, before anything is built or read.

The contract says what follows from the study, the policy what this hospital allows, the approval what a person has
decided. A plan needs all three.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from client.config import SiteConfig
from client.governance import approval as approvals
from client.governance import policy
from client.governance.audit import Audit
from client.governance.contract import Contract
from client.governance.facts import Facts
from client.privacy.budget import Budget
from client.training.state.local_state import SiteState
from common import wire
from common.config import StudyConfig
from common.polling import wait_until

_LOOK_S = 1.0
"""Pause between two looks for a person's decision."""


@dataclass(frozen=True)
class Received:
    """What is known of a plan's message besides its contents."""

    num_bytes: int
    arrays_digest: str
    """Of its arrays, empty without any. Hashed once: a large model takes seconds."""


class Permission:
    """Decides about the plans of one site."""

    def __init__(
        self,
        site: SiteConfig,
        audit: Audit,
        clock: Callable[[], datetime],
        pause: Callable[[float], None],
        budget: Budget,
    ) -> None:
        self._site = site
        self._budget = budget
        self._audit = audit
        self._clock, self._pause = clock, pause

    def require(self, plan: wire.Plan, received: Received) -> Facts:
        """The facts by which this plan is allowed. Raises PolicyRefusal if this hospital did not agree to it."""
        contract = self._contract(plan.study)
        contract.check(plan, received.arrays_digest)
        facts = self._facts(plan, contract, self._decision(plan.study), received)
        policy.enforce(plan, self._site.policy, facts)
        return facts

    def keep(self, plan: wire.Plan, received: Received) -> None:
        """Remember the plan as a question that was asked. Raises StorageError."""
        given = approvals.given(self._site.state_dir, plan.study)
        self._contract(plan.study).keep(plan, received.arrays_digest, given)

    def approval(self, plan: wire.ApprovalPlan, received: Received) -> wire.ApprovalAnswer:
        """What `approval_now` says, held back for some seconds as long as that is neither yes nor no."""

        def is_settled() -> bool:
            return self.approval_now(plan, received).decision in ("yes", "no")

        wait_until(is_settled, plan.hold_s, poll_s=_LOOK_S, pause=self._pause)
        return self.approval_now(plan, received)

    def approval_now(
        self, plan: wire.ApprovalPlan | wire.EnrolPlan, received: Received
    ) -> wire.ApprovalAnswer:
        """Whether the study of this plan can begin here. Raises PolicyRefusal if it never can.

        So a person is only asked about studies that the other rules allow.
        """
        study = plan.study
        contract = self._contract(study)
        contract.check(plan, received.arrays_digest)
        decision = self._decision(study)
        facts = self._facts(plan, contract, decision, received)
        most = self._site.policy.max_runs
        if self._site.policy.ask and most is not None and facts.runs > most:
            approvals.end(self._site.state_dir, study)  # a person can say yes once more
            decision = self._decision(study)
            facts = self._facts(plan, contract, decision, received)
        closed = policy.enforce_lasting(plan, self._site.policy, facts)
        answer = wire.ApprovalAnswer(plan_id=plan.plan_id, site=plan.site, decision=decision.answer)
        match decision.answer:
            case "no":
                return answer.model_copy(update={"reason": decision.reason})
            case "undecided":
                approvals.note(self._site.state_dir, study, facts.now)
                return answer
            case "yes" if closed:
                return answer.model_copy(update={"decision": "closed", "reason": closed})
            case "yes":
                return answer

    def _contract(self, study: StudyConfig) -> Contract:
        return Contract(SiteState(self._site.state_dir, study).folder)

    def _decision(self, study: StudyConfig) -> approvals.Decision:
        asks = self._site.policy.ask
        return approvals.decision(self._site.state_dir, study) if asks else approvals.Decision("yes")

    def _facts(
        self, plan: wire.Plan, contract: Contract, decision: approvals.Decision, received: Received
    ) -> Facts:
        timezone = self._site.policy.timezone
        now = self._clock().astimezone(ZoneInfo(timezone) if timezone else None)
        today = self._audit.work_since(now.replace(hour=0, minute=0, second=0, microsecond=0))
        given = approvals.given(self._site.state_dir, plan.study)
        return Facts(
            now=now,
            epsilon=self._budget.after(plan),
            decision=decision.answer,
            rounds_today=today.rounds,
            num_bytes=received.num_bytes,
            arrays_digest=received.arrays_digest,
            evaluations_today=today.evaluations,
            device_minutes_today=today.seconds / 60,
            num_answered=contract.num_answered,
            are_known=not isinstance(plan, wire.HeadPlan) or contract.has_shown(plan.weights_digest),
            runs=max(1, contract.runs_under(given) + contract.starts_again(plan)),
        )
