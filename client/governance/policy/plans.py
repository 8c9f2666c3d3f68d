"""Rules about a plan: the study it is of, the clock, the day's budgets, and who has to agree."""

from collections.abc import Iterator
from datetime import datetime, time, timedelta

from pydantic import BaseModel

from client.config import Hours, PolicyConfig
from client.governance.facts import Facts, RuleViolation
from client.governance.policy import training
from client.governance.policy.violations import listed, matches, quoted, raise_if_any
from common import wire
from common.config import HubWeights, StudyConfig


def check(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> list[RuleViolation]:
    """Every rule that refuses this plan; a rule about what is not known yet refuses nothing."""
    study = plan.study
    violations = [
        *_names(study, policy),
        *_hours(policy, facts.now),
        *_approval(study, policy, facts),
        *_overlap(plan, policy),
        *_study_rules(plan, policy, facts),
        *_budgets(plan, policy, facts),
        *_only_scores(plan, policy),
        *_privacy(plan, policy, facts),
        *training.rules_of_weights(plan, policy, facts),
    ]
    if isinstance(plan, wire.HeadPlan):
        violations += _heads(plan, policy)
    if plan.site in study.sites.train:
        violations += training.rules_of_training(plan, policy, facts)
    return violations


def enforce(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> None:
    """Raise PolicyRefusal if any rule refuses this plan."""
    raise_if_any(check(plan, policy, facts))


def scores(plan: wire.Plan) -> bool:
    """Whether the plan asks for scores of weights on this site's images."""
    if isinstance(plan, wire.RoundPlan):
        return bool(plan.score)
    return isinstance(plan, wire.HeadPlan) and plan.step.kind == "score"


def enforce_lasting(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> str:
    """Raise PolicyRefusal if a rule refuses this plan for good, whatever a person or the clock says.

    Returns when a closed site opens again, empty if it is open.
    """
    violations = check(plan, policy, facts)
    raise_if_any([violation for violation in violations if violation.rule not in _PASSING])
    return next((violation.message for violation in violations if violation.rule == "hours"), "")


_PASSING = ("ask", "hours")
"""Rules that refuse a plan now and may allow it later."""


def _names(study: StudyConfig, policy: PolicyConfig) -> Iterator[RuleViolation]:
    for rule, what, name, allowed in (
        ("studies", "the study is", study.name, policy.studies),
        ("encoders", "the study's encoder is", study.model.encoder, policy.encoders),
    ):
        if not matches(name, allowed):
            yield RuleViolation(rule, f"{what} {quoted(name)}", f"allowed: {listed(allowed)}")


def _hours(policy: PolicyConfig, now: datetime) -> Iterator[RuleViolation]:
    if policy.hours is not None and not is_open(policy.hours, now.time()):
        again = next_opening(policy.hours, now).isoformat(timespec="minutes")
        yield RuleViolation(
            "hours", f"this site takes plans again at {again}", f"open {policy.hours.model_dump()}"
        )


def is_open(hours: Hours, clock: time) -> bool:
    """Whether `clock` lies within `hours`: the opening minute does, the closing one does not."""
    if hours.opens < hours.closes:
        return hours.opens <= clock < hours.closes
    return clock >= hours.opens or clock < hours.closes


def next_opening(hours: Hours, now: datetime) -> datetime:
    """The next time, after `now`, at which `hours` open, by local time."""
    today = now.replace(hour=hours.opens.hour, minute=hours.opens.minute, second=0, microsecond=0)
    return today if today > now else today + timedelta(days=1)


def _approval(study: StudyConfig, policy: PolicyConfig, facts: Facts) -> Iterator[RuleViolation]:
    if not policy.ask or facts.decision == "yes":
        return
    what = f"study {study.name} ({study.fingerprint[:12]})"
    if facts.decision == "no":
        yield RuleViolation("ask", f"a person at this site refused {what}", "see `consilium-site pending`")
    else:
        yield RuleViolation(
            "ask",
            f"{what} waits for approval at this site",
            "see `consilium-site pending` and `consilium-site approve`",
        )


def _overlap(plan: wire.Plan, policy: PolicyConfig) -> Iterator[RuleViolation]:
    compares = plan.study.overlap is not None
    if compares and not policy.overlap:
        yield RuleViolation(
            "overlap", "the study compares images between sites", "no comparison allowed, not even of hashes"
        )
    if isinstance(plan, wire.OverlapPlan) and not compares:  # the approval was given without it
        yield RuleViolation(
            "overlap", "the plan compares images, its study does not", "a study must declare it"
        )


def _only_scores(plan: wire.Plan, policy: PolicyConfig) -> Iterator[RuleViolation]:
    if not policy.scores and plan.site in plan.study.sites.evaluate:
        yield RuleViolation("scores", "the study asks this site for scores only", "no scores leave")


def _heads(plan: wire.HeadPlan, policy: PolicyConfig) -> Iterator[RuleViolation]:
    titles = plan.study.heads.titles if plan.study.heads is not None else ()
    if refused := [title for title in titles if not matches(title, policy.heads)]:
        message = f"the study fits {', '.join(map(quoted, refused[:5]))}"
        yield RuleViolation("heads", message, f"allowed: {listed(policy.heads) or 'none'}")


def _study_rules(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> Iterator[RuleViolation]:
    study = plan.study
    if policy.min_cohort is not None and study.sites.quorum < policy.min_cohort:
        yield RuleViolation(
            "min_cohort",
            f"the study goes on with {study.sites.quorum} training site(s)",
            f"at least {policy.min_cohort}",
        )
    yield from _masks(study, policy)
    if policy.only_masked and study.secure_aggregation is None and plan.site in study.sites.train:
        yield RuleViolation("only_masked", "the study has no secure_aggregation", "updates leave masked only")
    if not policy.hub_weights and _from_hub(study.model):
        yield RuleViolation("hub_weights", "the study starts from weights of a public hub", "not allowed")
    if policy.max_runs is not None and facts.runs > policy.max_runs:
        yield RuleViolation(
            "max_runs",
            "the study begins again from its first round, and this site has to agree once more",
            f"run {facts.runs}, at most {policy.max_runs} for each approval",
        )


def _masks(study: StudyConfig, policy: PolicyConfig) -> Iterator[RuleViolation]:
    held = study.colluding_sites
    if held is not None and held < policy.max_colluding:
        yield RuleViolation(
            "max_colluding",
            f"the study's masks hold while {held} site(s) work together with the server",
            f"at least {policy.max_colluding}; raise secure_aggregation.threshold and sites.required",
        )


def _privacy(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> Iterator[RuleViolation]:
    asked, rules = plan.study.privacy, policy.privacy
    if rules is None:
        if asked is not None and plan.site in plan.study.sites.train and (named := _counted_rules(policy)):
            yield RuleViolation(
                "privacy",
                "the study draws patients by chance, so what this site's policy counts in a step cannot be counted",
                f"{named} is set; set policy.privacy as well, which takes its place in such a study",
            )
        return
    if asked is None:
        yield RuleViolation("privacy", "the study has no privacy", "only with noise")
        return
    if plan.site in plan.study.sites.evaluate:
        yield RuleViolation(
            "privacy", "the study asks this site for scores, which have no noise", "none leave"
        )
        return
    # Without rounds there is no such noise, and epsilon alone bounds what the sums for heads cost.
    if rules.least_noise is not None and asked.noise is not None and asked.noise < rules.least_noise:
        yield RuleViolation(
            "privacy", f"the study's noise is {asked.noise:g}", f"at least {rules.least_noise:g}"
        )
    if facts.epsilon is not None and facts.epsilon > rules.max_epsilon:
        yield RuleViolation(
            "privacy",
            "the study would take more privacy than this site has left",
            f"epsilon {facts.epsilon:.3g} in all, at most {rules.max_epsilon:g}",
        )


def _counted_rules(policy: PolicyConfig) -> str:
    rules = ("min_cell", "min_batch", "max_patient_share")
    return " and ".join(name for name in rules if getattr(policy, name) is not None)


def _from_hub(settings: BaseModel) -> bool:
    """Whether any part of the model starts from a hub's weights."""
    parts = [value for _, value in settings if isinstance(value, BaseModel)]
    return isinstance(settings, HubWeights) or any(map(_from_hub, parts))


def _budgets(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> Iterator[RuleViolation]:
    """Of a day. What was asked before is answered again without counting, before the policy is asked."""
    trains = isinstance(plan, wire.RoundPlan) and plan.train
    for rule, counts, what, done, most in (
        ("max_rounds_per_day", trains, "trains", facts.rounds_today, policy.max_rounds_per_day),
        (
            "max_evaluations_per_day",
            scores(plan),
            "scores",
            facts.evaluations_today,
            policy.max_evaluations_per_day,
        ),
        (
            "max_device_minutes_per_day",
            not isinstance(plan, wire.ApprovalPlan | wire.EnrolPlan),
            "computes",
            facts.device_minutes_today,
            policy.max_device_minutes_per_day,
        ),
    ):
        if counts and most is not None and done >= most:
            yield RuleViolation(rule, f"this site {what} no more today", f"{done:g} of {most:g}")
