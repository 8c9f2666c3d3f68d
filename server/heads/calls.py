"""Messages of one head step: who is sent a plan, and which answers are admitted.

What a site sends here is added to the sums of the others. So each array must have the requested shape, be
finite, and cover as many images as the site enrolled with. A site that fails, stays silent or sends an answer
that does not fit has no part in the step. It is logged with the reason, and the others go on.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from common import log, wire
from common.config import StudyConfig
from common.errors import UpdateRejected
from common.heads import under
from common.weights import Arrays, digest
from common.wire import head_steps
from common.wire.mask_steps import Envelopes
from server.rounds.failures import failure_sentence, printable
from server.rounds.sites import Deadline, Sites
from server.state import Cohort, RoundState

Shapes: TypeAlias = Mapping[str, tuple[int | None, ...]]
"""Shapes of the arrays that an answer must have, by name; None: any length."""

MaskPlans: TypeAlias = tuple[int, Mapping[str, Envelopes]]
"""Number of a masked sum, and by site the envelopes for it."""


@dataclass
class HeadCalls:
    """Head steps of one study on one set of weights."""

    study: StudyConfig
    sites: Sites
    cohort: Cohort
    state: RoundState
    problems: dict[str, str] = field(default_factory=dict)
    """By site: the last step that it had no part in, and why. A later step that it answers changes nothing."""
    num_messages: int = 0
    epsilons: dict[str, float] = field(default_factory=dict)
    """By site, with privacy: what the study had cost its patients as of its last answer."""
    refusing: set[str] = field(default_factory=set)
    """Sites whose policy refused the last step."""
    _informed: set[str] = field(default_factory=set)
    """Sites that have been sent the weights."""

    @property
    def round(self) -> int:
        """Round after which these weights stood."""
        return self.state.round - 1 if self.state.closing else self.state.round

    def ask(
        self,
        names: Collection[str],
        step: head_steps.HeadStep,
        arrays: Arrays,
        admit: Callable[[str, wire.HeadAnswer], None],
        masks: MaskPlans | None = None,
    ) -> dict[str, wire.HeadAnswer]:
        """Admitted answers by site, in the order of names. `admit` raises UpdateRejected. `masks`: number of the sum,
        and envelopes by site.

        The first timely answer of a site counts, whether it is admitted or not.
        """
        self.num_messages += 1
        weights_digest = digest(self.state.weights)
        with_weights = {**under(wire.WEIGHTS, self.state.weights), **arrays}
        work = f"{self.study.fingerprint} {self.round} {weights_digest} {step.model_dump_json()} {digest(arrays)}"
        number, envelopes = masks or (0, {})

        def plan_id(site: str) -> str:
            under_masks = f" {number} {sorted(envelopes[site].items())}" if masks else ""
            return hashlib.sha256(f"heads {work} {site}{under_masks}".encode()).hexdigest()[:32]

        plans = {
            site: wire.HeadPlan(
                plan_id=plan_id(site),
                site=site,
                study=self.study,
                round=self.round,
                weights_digest=weights_digest,
                step=step,
                envelopes=envelopes.get(site),
                mask_number=number,
                arrays=arrays if site in self._informed else with_weights,
            )
            for site in sorted(names)
        }
        answers: dict[str, wire.HeadAnswer] = {}
        unanswered = set(plans)
        for reply in self.sites.ask(plans, Deadline(self.study.deadlines.round_s)):
            if reply.late or reply.site not in unanswered:
                continue
            unanswered.remove(reply.site)
            try:
                answers[reply.site] = _admitted(reply.answer, plans[reply.site], admit)
            except UpdateRejected as rejection:
                self.leave_out(reply.site, step, str(rejection))
                if isinstance(reply.answer, wire.Failure) and reply.answer.error == "policy":
                    self.refusing.add(reply.site)
            else:
                self._informed.add(reply.site)
                if (spent := answers[reply.site].epsilon) is not None:
                    self.epsilons[reply.site] = spent
        for site in sorted(unanswered):
            self.leave_out(site, step, f"no answer within {self.study.deadlines.round_s:.0f} s")
        return {site: answers[site] for site in sorted(answers)}

    def admit_training(
        self,
        shapes: Shapes,
        wrong: Callable[[str, wire.HeadAnswer], str | None] = lambda _site, _answer: None,
    ) -> Callable[[str, wire.HeadAnswer], None]:
        """A check of sums over training images against these shapes, then by `wrong`, which says what no images have.

        It raises UpdateRejected.
        """

        def admit(site: str, answer: wire.HeadAnswer) -> None:
            if answer.train_counts != self.cohort.enrolments[site].train_counts:
                raise UpdateRejected("its sums are over other training images than it enrolled with")
            for name, shape in shapes.items():
                array = answer.arrays.get(name)
                if array is None or not _fits(array.shape, shape):
                    actual = "missing" if array is None else f"of shape {list(array.shape)}"
                    raise UpdateRejected(f"{name} is {actual}, expected {list(shape)}")
                if array.dtype.kind != "f" or not np.all(np.isfinite(array)):
                    raise UpdateRejected(f"{name} has entries that are not finite numbers")
            if (reason := wrong(site, answer)) is not None:
                raise UpdateRejected(reason)

        return admit

    def leave_out(self, site: str, step: head_steps.HeadStep, reason: str) -> None:
        """Record and log that a site has no part in a step."""
        self.problems[site] = f"{step.kind}: {printable(reason)}"
        log.warn(f"heads  {site}: no part in {self.problems[site]}", site=site, outcome="failed")


def _fits(actual: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(actual) == len(expected) and all(e in (None, a) for a, e in zip(actual, expected, strict=True))


def _admitted(
    answer: wire.Answer, plan: wire.HeadPlan, admit: Callable[[str, wire.HeadAnswer], None]
) -> wire.HeadAnswer:
    match answer:
        case wire.Failure() as failure:
            raise UpdateRejected(failure_sentence(failure))
        case wire.HeadAnswer() if answer.plan_id == plan.plan_id and answer.step == plan.step.kind:
            admit(plan.site, answer)
            return answer
        case _:
            raise UpdateRejected("its answer is to another step")
