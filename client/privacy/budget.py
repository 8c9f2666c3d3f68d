"""The budget of one site: what a plan would cost, and the charge before it is carried out."""

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from client.config import SiteConfig
from client.config.policy import PrivacyPolicy
from client.governance import audit
from client.privacy import ledger, witness
from client.privacy.accountant import Charge, epsilon
from common import log, wire
from common.config import DpSgdConfig, NoisyScoring, NoisySums, StudyConfig
from common.errors import PolicyRefusal, StorageError
from common.heads import below
from common.weights import digest
from common.wire import head_steps

COUNTS = "counts"
"""What the first charge of a study pays for."""
_HEADS, _SCORES, _HEAD_SCORES = "head sums", "scores", "head scores"


class Budget:
    """Charges the patients of one site, whatever study it is for."""

    def __init__(self, site: SiteConfig, log_of_site: audit.Audit, clock: Callable[[], datetime]) -> None:
        self._site, self._audit, self._clock = site, log_of_site, clock

    def after(self, plan: wire.Plan) -> float | None:
        """Epsilon of all studies together once what is left of this plan is done; None if it costs nothing.

        An approval or an enrolment stands for all rounds from the one that comes next. Raises StorageError.
        """
        return None if _is_free(plan) else _after(plan, self._read(), self._delta(plan.study))

    def charge(self, study: StudyConfig, what: str, charge: Charge) -> None:
        """Write the charge down, in the ledger and then in the audit log. Raises PolicyRefusal if too little is left,
        StorageError.
        """
        rules, total = self._site.policy.privacy, 0.0

        def may(before: ledger.Ledger) -> None:
            nonlocal total
            self._require_newest(before)
            total = epsilon([*before.charges(), charge], self._delta(study))
            if rules is not None and total > rules.max_epsilon:
                raise PolicyRefusal(
                    f"this site's patients have too little privacy left for {what} of study {study.name}: epsilon "
                    f"would be {total:.3g}, at most {rules.max_epsilon:g} (policy.privacy.max_epsilon)",
                    reason="privacy: too little is left at this site",
                )

        moment = self._clock().astimezone(UTC)
        number, line_hash = ledger.append(
            self._site.state_dir, moment, study.name, study.fingerprint, what, charge, may
        )
        self._audit.append("charge", {"study": study.name, "number": number, "ledger": line_hash})
        witness.keep(self._site.ledger_witness, number, line_hash)
        log.event(f"privacy: charged {what} of {study.name}; epsilon {total:.3g} in all", study=study.name)

    def of_study(self, study: StudyConfig) -> float:
        """Epsilon of this study alone so far, at the study's delta. It goes to the server."""
        assert study.privacy is not None
        return epsilon(self._read().charges(study.fingerprint), study.privacy.delta)

    def _delta(self, study: StudyConfig) -> float:
        return _delta(self._site, study)

    def _read(self) -> ledger.Ledger:
        found = ledger.read(self._site.state_dir)
        self._require_newest(found)
        return found

    def _require_newest(self, found: ledger.Ledger) -> None:
        require_newest(found, self._audit.charged, self._site.state_dir)
        require_newest(found, witness.last(self._site.ledger_witness), self._site.state_dir, "ledger_witness")


def planned(plan: wire.Plan, site: SiteConfig) -> float | None:
    """What `Budget.after` says, of the ledger as it lies there. Raises StorageError."""
    return None if _is_free(plan) else _after(plan, ledger.read(site.state_dir), _delta(site, plan.study))


def _is_free(plan: wire.Plan) -> bool:
    return plan.study.privacy is None or plan.site not in plan.study.sites.train


def _delta(site: SiteConfig, study: StudyConfig) -> float:
    """The site's own or, without a policy on privacy, the study's."""
    rules = site.policy.privacy
    if rules is not None:
        return rules.delta
    assert study.privacy is not None, "only a study with privacy has a delta"
    return study.privacy.delta


def _after(plan: wire.Plan, spent: ledger.Ledger, delta: float) -> float:
    study, charges = plan.study, spent.charges()
    assert study.privacy is not None
    if not any(entry.what == COUNTS and entry.fingerprint == study.fingerprint for entry in spent.entries):
        charges.append(counts_charge(study.privacy))
    rounds, paid = 0, [entry.what for entry in spent.entries if entry.fingerprint == study.fingerprint]
    match plan:
        case wire.ApprovalPlan() | wire.EnrolPlan():
            rounds = max(0, study.rounds - plan.first_round + 1)
            if not any(what.startswith(_HEADS) for what in paid):
                charges += _heads_charges(study.privacy)
            for start, charge in _scores_charges(study).items():
                if not any(what.startswith(f"{start} ") for what in paid):
                    charges.append(charge)
        case wire.RoundPlan():
            # The contract refuses a round of a study without any.
            rounds = int(plan.train and study.rounds > 0)
            charges += _unpaid_scores(plan, paid)
        case wire.HeadPlan(step=head_steps.StatisticsStep()) if (
            heads_question(plan.weights_digest) not in paid
        ):
            charges += _heads_charges(study.privacy)
        case wire.HeadPlan():
            charges += _unpaid_scores(plan, paid)
        case _:
            pass
    return epsilon([*charges, *_rounds_charges(study, rounds)], delta)


def cost(study: StudyConfig) -> float:
    """Epsilon of the whole study, carried out once, at its own delta."""
    assert study.privacy is not None
    rounds = _rounds_charges(study, study.rounds)
    return epsilon(
        [
            counts_charge(study.privacy),
            *rounds,
            *_heads_charges(study.privacy),
            *_scores_charges(study).values(),
        ],
        study.privacy.delta,
    )


def lines(state_dir: Path, rules: PrivacyPolicy | None, witnessed: Path | None = None) -> list[str]:
    """What was spent, for a person: in all, and by study. Empty if nothing was. `witnessed` is the site's
    `ledger_witness`. Raises StorageError.
    """
    found = ledger.read(state_dir)
    charged = next(
        (
            (int(str(fields["number"])), str(fields["ledger"]))
            for fields in reversed(list(audit.events(state_dir / audit.FILE)))
            if fields["event"] == "charge"
        ),
        None,
    )
    require_newest(found, charged, state_dir)
    require_newest(found, witness.last(witnessed), state_dir, "ledger_witness")
    if not found.entries:
        return [] if rules is None else [f"privacy: nothing spent, of epsilon {rules.max_epsilon:g}"]
    delta = _WITHOUT_RULES if rules is None else rules.delta
    most = "no limit is set" if rules is None else f"of {rules.max_epsilon:g}"
    total = epsilon(found.charges(), delta)
    studies = {entry.fingerprint: entry.study for entry in found.entries}
    return [
        f"privacy: epsilon {total:.3g} spent, {most}, at delta {delta:g}, in {len(found.entries)} charges",
        *(
            f"  study {name} ({fingerprint[:12]}): epsilon {epsilon(found.charges(fingerprint), delta):.3g}"
            for fingerprint, name in studies.items()
        ),
    ]


_WITHOUT_RULES = 1e-5
"""Delta of what is shown where the policy names none."""


def require_newest(
    found: ledger.Ledger, charged: tuple[int, str] | None, state_dir: Path, noted_by: str = "the audit log"
) -> None:
    """Raise StorageError if another record knows of a charge that the ledger does not have."""
    if charged is not None and not found.has(*charged):
        raise StorageError(
            f"{state_dir / ledger.FILE} has {len(found.entries)} charges, and {noted_by} has noted charge "
            f"{charged[0]}, which is not among them: the ledger was put back from an older copy, or replaced. "
            f"{ledger.WHAT_TO_DO}."
        )


def counts_charge(privacy: DpSgdConfig) -> Charge:
    """What the noisy counts of the enrolment cost."""
    return Charge(privacy.count_noise, 1.0, 1)


def round_charge(study: StudyConfig) -> Charge:
    """What one round costs."""
    assert study.privacy is not None
    return Charge(study.privacy.step_noise, study.privacy.step_rate, study.privacy.num_steps(study.local))


def _rounds_charges(study: StudyConfig, number: int) -> list[Charge]:
    return [round_charge(study)] * number if number else []


def heads_question(weights_digest: str) -> str:
    """What is paid for when heads are fitted on these weights, as the ledger has it."""
    return f"{_HEADS} {weights_digest[:16]}"


def heads_charge(noise: NoisySums) -> Charge:
    """What the sums for all heads together cost."""
    return Charge(noise.noise, 1.0, 1)


def _heads_charges(privacy: DpSgdConfig) -> list[Charge]:
    return [] if privacy.heads is None else [heads_charge(privacy.heads)]


def scores_question(plan: wire.RoundPlan | wire.HeadPlan) -> str | None:
    """What is paid for when this plan has test images scored, as the ledger has it; None if it does not."""
    if isinstance(plan, wire.RoundPlan):
        return f"{_SCORES} {digest(plan.network)[:16]}" if "test" in plan.score else None
    if not isinstance(plan.step, head_steps.ScoreStep) or plan.step.side != "test":
        return None
    asked = f"{plan.weights_digest} {plan.step.model_dump_json()} {digest(below('head', plan.arrays))}"
    return f"{_HEAD_SCORES} {hashlib.sha256(asked.encode()).hexdigest()[:16]}"


def scores_charge(noise: NoisyScoring) -> Charge:
    """What the confusion matrices of one answer cost."""
    return Charge(noise.noise, 1.0, 1)


def _scores_charges(study: StudyConfig) -> dict[str, Charge]:
    """By what they are for: the charges for scores of the whole study."""
    assert study.privacy is not None
    if study.privacy.scores is None:
        return {}
    whats = (_SCORES,) if study.heads is None else (_SCORES, _HEAD_SCORES)
    return {what: scores_charge(study.privacy.scores) for what in whats}


def _unpaid_scores(plan: wire.RoundPlan | wire.HeadPlan, paid: Sequence[str]) -> list[Charge]:
    assert plan.study.privacy is not None
    question = scores_question(plan)
    if plan.study.privacy.scores is None or question is None or question in paid:
        return []
    return [scores_charge(plan.study.privacy.scores)]
