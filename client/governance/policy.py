"""The site's policy, applied: plans outside it are refused. What is left out of the images is in `small_cells.py`.

A plan is compared with the site's own YAML before anything is built or read, and once more
when model and images are known. All violations are reported at once. The server learns which
rules refuse and what the *study* asks for. It never learns the policy's limits or what this
site holds. One exception is the next opening time, because a server needs it to try again.
The limits are written to the site's own log.

"""

from collections.abc import Iterator, Sequence
from datetime import datetime, time, timedelta
from fnmatch import fnmatchcase

import numpy as np
from pydantic import BaseModel

from client.config import Hours, PolicyConfig
from client.governance.facts import BuiltStudy, Facts, RuleViolation
from common import wire
from common.config import HubWeights, LocalConfig, Scaffold, StudyConfig
from common.errors import PolicyRefusal
from common.heads import travelling
from common.masking.tables import SCORES, num_words
from common.metrics import Score
from common.metrics.replicates import Replicates, least_patients
from common.weights import num_bytes
from common.wire import compact

_MIB = 2**20
_LONGEST_NAME, _LONGEST_REASON = 80, 2000


# --- plans -----------------------------------------------------------------------------------


def check(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> list[RuleViolation]:
    """Every rule that refuses this plan; a rule about what is not known yet refuses nothing."""
    study = plan.study
    violations = [
        *_names(study, policy),
        *_hours(policy, facts.now),
        *_approval(study, policy, facts),
        *_overlap(plan, policy),
        *_size(
            "max_mib_down",
            "a plan",
            max(facts.num_bytes, _tensor_bytes(plan, facts) * _sets_of_tensors(plan.study)),
            policy.max_mib_down,
        ),
    ]
    violations += [
        *_study_rules(plan, policy, facts),
        *_budgets(plan, policy, facts),
        *_only_scores(plan, policy),
        *_privacy(plan, policy, facts),
        *_weights(plan, policy, facts),
    ]
    if isinstance(plan, wire.HeadPlan):
        violations += _heads(plan, policy)
    if plan.site not in study.sites.train:
        return violations
    # What the study asks of a training site counts for each of its plans: a step towards a head is no way around.
    return [
        *violations,
        *_epochs(study, policy, facts.built),
        *_seen(study, policy),
        *_exposure(policy, facts.built),
        *_images(policy, facts.built),
        *_tensors(_names_of_tensors(plan, facts), policy),
        *_size("max_mib_up", "an answer", _answer_bytes(plan, facts), policy.max_mib_up),
    ]


def enforce(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> None:
    """Raise PolicyRefusal if any rule refuses this plan."""
    _raise_if_any(check(plan, policy, facts))


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
    _raise_if_any([violation for violation in violations if violation.rule not in _PASSING])
    return next((violation.message for violation in violations if violation.rule == "hours"), "")


_PASSING = ("ask", "hours")
"""Rules that refuse a plan now and may allow it later."""


def _names(study: StudyConfig, policy: PolicyConfig) -> Iterator[RuleViolation]:
    for rule, what, name, allowed in (
        ("studies", "the study is", study.name, policy.studies),
        ("encoders", "the study's encoder is", study.model.encoder, policy.encoders),
    ):
        if not _matches(name, allowed):
            yield RuleViolation(rule, f"{what} {_quoted(name)}", f"allowed: {_listed(allowed)}")


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
    if refused := [title for title in titles if not _matches(title, policy.heads)]:
        message = f"the study fits {', '.join(map(_quoted, refused[:5]))}"
        yield RuleViolation("heads", message, f"allowed: {_listed(policy.heads) or 'none'}")


def _study_rules(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> Iterator[RuleViolation]:
    study = plan.study
    if policy.min_cohort is not None and study.sites.quorum < policy.min_cohort:
        yield RuleViolation(
            "min_cohort",
            f"the study goes on with {study.sites.quorum} training site(s)",
            f"at least {policy.min_cohort}",
        )
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
    if rules.least_noise is not None and asked.noise < rules.least_noise:
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


def _weights(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> Iterator[RuleViolation]:
    """The received weights: in round 1 the site's own, later not far from those before."""
    built = facts.built
    if built is None or not isinstance(plan, wire.RoundPlan | wire.HeadPlan):
        return
    if (
        isinstance(plan, wire.RoundPlan)
        and plan.round == 1
        and policy.own_first_weights
        and facts.arrays_digest != built.weights_digest
    ):
        yield RuleViolation(
            "own_first_weights",
            "the first weights are not those that this site builds from the study",
            "other first weights are not allowed",
        )
    if (
        isinstance(plan, wire.HeadPlan)
        and policy.own_first_weights
        and facts.num_answered == 0
        and not facts.are_known
        and plan.weights_digest != built.weights_digest
    ):
        yield RuleViolation(
            "own_first_weights",
            "heads are asked for on weights to which no round of this site has led",
            "only the first weights that this site builds itself",
        )
    most = policy.max_weight_change
    if most is not None and built.weight_change > most:
        yield RuleViolation(
            "max_weight_change",
            "the weights have changed too much since the last round",
            f"by {built.weight_change:.2f} of their norm, at most {most:g}",
        )


def _exposure(policy: PolicyConfig, built: BuiltStudy | None) -> Iterator[RuleViolation]:
    least = policy.min_batch or policy.min_cell
    if least is None or built is None or built.fewest_patients is None:
        return
    rule = "min_cell" if policy.min_batch is None else "min_batch"
    if built.fewest_patients < least:
        yield RuleViolation(
            rule, "an optimizer step is on too few patients", f"{built.fewest_patients}, at least {least}"
        )
    elif built.largest_share > 1 / least:
        yield RuleViolation(
            rule,
            "one patient weighs too much in the round",
            f"{built.largest_share:.0%}, at most {1 / least:.0%}",
        )
    elif built.largest_share_of_statistics > 1 / least:
        yield RuleViolation(
            rule,
            "one patient weighs too much in the statistics of batch normalisation",
            f"{built.largest_share_of_statistics:.0%}, at most {1 / least:.0%}",
        )
    if 0 < built.left_out < least:
        yield RuleViolation(
            rule,
            "the round leaves out a few patients, who would show in the difference of two rounds",
            f"{built.left_out}, at least {least} or none",
        )


def _epochs(study: StudyConfig, policy: PolicyConfig, built: BuiltStudy | None) -> Iterator[RuleViolation]:
    local, most = study.local, policy.max_epochs_per_round
    num_epochs = epochs(local, None if built is None else sum(built.train_counts))
    if study.privacy is not None:
        num_epochs = study.privacy.num_steps(local) * study.privacy.sampling_rate
    if most is None or num_epochs is None or num_epochs <= most:
        return
    steps = f"{local.steps} steps of {local.batch_size} images"
    asked = f"{local.num_epochs:g} epochs" if local.num_epochs is not None else steps
    yield RuleViolation(
        "max_epochs_per_round", f"the study asks for {asked} a round", f"{num_epochs:g}, at most {most:g}"
    )


def epochs(local: LocalConfig, num_images: int | None) -> float | None:
    """Passes over `num_images` training images in a round, None if that is not known yet."""
    if local.num_epochs is not None:
        return local.num_epochs
    if num_images is None or local.steps is None:
        return None
    if local.batch_size == "all" or num_images <= local.batch_size:
        return float(local.steps)  # a batch is never larger than what there is
    return local.steps * local.batch_size / num_images


def _seen(study: StudyConfig, policy: PolicyConfig) -> Iterator[RuleViolation]:
    """A delta trained on two images can reveal both (gradient inversion)."""
    local = study.local
    if (
        study.privacy is not None
        or local.steps is None
        or local.batch_size == "all"
        or policy.min_cell is None
    ):
        return
    if (seen := local.steps * local.batch_size) < policy.min_cell:
        yield RuleViolation(
            "min_cell", f"the study sees only {seen} images a round", f"at least {policy.min_cell}"
        )


def _images(policy: PolicyConfig, built: BuiltStudy | None) -> Iterator[RuleViolation]:
    if built is None:
        return
    few, total = "this site holds too few training images of the study's classes", sum(built.train_counts)
    if policy.min_train_images is not None and total < policy.min_train_images:
        yield RuleViolation("min_train_images", few, f"{total}, at least {policy.min_train_images}")
    least = min((count for count in built.train_counts if count), default=0)
    if policy.min_class_images is not None and least < policy.min_class_images:
        yield RuleViolation(
            "min_class_images", few, f"{least}, at least {policy.min_class_images} of each class"
        )


def _tensors(names: Sequence[str], policy: PolicyConfig) -> Iterator[RuleViolation]:
    refused = [name for name in names if not _matches(name, policy.tensors)]
    if refused:
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        message = f"the study trains {_quoted(refused[0])}{more}; train fewer (model.trainable)"
        yield RuleViolation("tensors", message, f"may leave: {_listed(policy.tensors)}")


def _size(rule: str, what: str, size: int, most: float | None) -> Iterator[RuleViolation]:
    if most is not None and size > most * _MIB:
        yield RuleViolation(rule, f"{what} of this study has {size / _MIB:.1f} MiB", f"at most {most:g}")


def _names_of_tensors(plan: wire.Plan, facts: Facts) -> list[str]:
    return sorted(facts.built.layout if facts.built is not None else wire.arrays_of(plan))


def _sets_of_tensors(study: StudyConfig) -> int:
    """Weights alone, or weights and a control variate."""
    return 2 if isinstance(study.algorithm, Scaffold) and study.rounds > 1 else 1


def _tensor_bytes(plan: wire.Plan, facts: Facts) -> int:
    """Bytes of the study's tensors; 0 if they are not known yet."""
    if facts.built is None:
        return num_bytes(wire.arrays_of(plan))
    return sum(int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for s in facts.built.layout.values())


def _answer_bytes(plan: wire.Plan, facts: Facts) -> int:
    """Bytes of a change of the study's tensors, which masks make two numbers of 8 bytes an entry."""
    if plan.study.secure_aggregation is None or facts.built is None:
        return _tensor_bytes(plan, facts)
    score = (
        8 * num_words(len(plan.study.classes)) * len(plan.score) if isinstance(plan, wire.RoundPlan) else 0
    )
    return score + sum(16 * int(np.prod(spec.shape)) for spec in facts.built.layout.values())


# --- answers -----------------------------------------------------------------------------------


def enforce_answer(answer: wire.Answer, size: int, policy: PolicyConfig, *, is_noisy: bool = False) -> None:
    """Check an answer of `size` bytes before it leaves. Raises PolicyRefusal. `is_noisy`: its counts have noise, so a
    small one tells nothing.

    A second barrier: it refuses nothing as long as the rest of the trainer is correct.
    """
    violations = [*_size("max_mib_up", "an answer", size, policy.max_mib_up)]
    names = set(wire.arrays_of(answer)) - {compact.SCALES, compact.PLACES}
    violations += _tensors(sorted(name for name in names if not name.startswith(f"{SCORES}/")), policy)
    kinds = set(travelling.left_in(sorted(wire.arrays_of(answer))).values())
    if stays := sorted(kinds - set(policy.heads_may_leave)):
        violations.append(
            RuleViolation("heads_may_leave", f"an answer holds a head of kind {stays[0]}", "may not leave")
        )
    if not is_noisy and any(0 < count < (policy.min_cell or 0) for count in _class_counts(answer)):
        violations.append(RuleViolation("min_cell", "an answer counts too few images", "left out too late"))
    cells = [cell for score in _scores(answer) for cell in _cells(score)]
    if not is_noisy and any(0 < cell < (policy.min_score_cell or 0) for cell in cells):
        violations.append(
            RuleViolation("min_score_cell", "a score counts too few images", "left out too late")
        )
    if isinstance(answer, wire.RoundAnswer) and answer.subgroups:
        violations += _wrong_subgroups(answer, policy)
        if is_noisy:
            violations.append(
                RuleViolation("privacy", "an answer counts by subgroup without noise", "none may leave")
            )
    if is_noisy and any(_is_exact(score) for score in _scores(answer)):
        violations.append(RuleViolation("privacy", "an answer holds scores without noise", "none may leave"))
    calibration = answer.calibration if isinstance(answer, wire.RoundAnswer) else None
    if calibration is not None and (is_noisy or not allows_calibration(policy)):
        violations.append(
            RuleViolation("calibration", "an answer holds calibration counts", "none may leave")
        )
    if (replicates := getattr(answer, "replicates", None)) is not None:
        violations += _replicates(replicates, policy, is_noisy=is_noisy)
    if isinstance(answer, wire.OverlapAnswer) and not policy.overlap:
        violations.append(RuleViolation("overlap", "an answer holds hashes of images", "none may leave"))
    _raise_if_any(violations)


def _wrong_subgroups(answer: wire.RoundAnswer, policy: PolicyConfig) -> Iterator[RuleViolation]:
    """Rows of subgroups, and what the score has beside them. A row has at least as many images as patients."""
    if not policy.subgroups:
        yield RuleViolation("subgroups", "an answer counts by subgroup", "none may leave")
    if "test" not in answer.scores:
        yield RuleViolation("min_subgroup", "a subgroup counts images that were not scored", "no test")
        return
    by_class_C = answer.scores["test"].confusion_CC.sum(axis=1)
    for counts in answer.subgroups.values():
        rows_VC = counts.confusion_VCC.sum(axis=2)
        shown_C = rows_VC.sum(axis=0)
        # Where no row of a class is shown, the rest is the class as the score has it.
        numbers = np.concatenate([rows_VC.ravel(), (by_class_C - shown_C)[shown_C > 0]])
        if ((numbers != 0) & (numbers < policy.min_subgroup)).any():
            yield RuleViolation("min_subgroup", "a subgroup counts too few images", "left out too late")


def allows_calibration(policy: PolicyConfig) -> bool:
    """Whether calibration counts may leave: not where the cells of scores are kept back, which they would tell."""
    return policy.calibration and policy.scores and policy.min_score_cell is None


def enforce_slopes(largest_share: float, policy: PolicyConfig) -> None:
    """Check a round that was trained. Raises PolicyRefusal if its change is mostly one patient's.

    `largest_share` is the largest of one patient in the slopes of the loss.
    """
    most = policy.max_patient_share
    if most is not None and not largest_share <= most:
        _raise_if_any(
            [
                RuleViolation(
                    "max_patient_share",
                    "the change of the weights would be of too few patients",
                    f"{largest_share:.0%} of one, at most {most:.0%}",
                )
            ]
        )


def _replicates(replicates: Replicates, policy: PolicyConfig, *, is_noisy: bool) -> Iterator[RuleViolation]:
    """What forbids that these sums over test patients leave."""
    if is_noisy or not policy.intervals or not policy.scores or policy.min_score_cell is not None:
        yield RuleViolation("intervals", "an answer holds sums over test patients", "none may leave")
    num_classes = (replicates.num_columns - 1) // 3
    if replicates.num_patients < (least := least_patients(num_classes)):
        yield RuleViolation("intervals", "sums are over too few test patients", f"at least {least}")


def _class_counts(answer: wire.Answer) -> Sequence[int]:
    match answer:
        case wire.Enrolment():
            return [*answer.train_counts, *answer.validation_counts, *answer.test_counts]
        case wire.RoundAnswer():
            scored = [count for score in _scores(answer) for count in score.images_C]
            calibrated = () if answer.calibration is None else answer.calibration.images_C
            return [*scored, *calibrated, answer.num_examples]
        case wire.HeadAnswer():
            scored = [count for score in _scores(answer) for count in score.images_C]
            return [*answer.train_counts, *scored]
        case wire.ApprovalAnswer() | wire.OverlapAnswer() | wire.MaskAnswer() | wire.Failure():
            return []


def _scores(answer: wire.Answer) -> list[Score]:
    if isinstance(answer, wire.HeadAnswer):
        return [result.score for result in answer.results if result.score is not None]
    return [*answer.scores.values(), *answer.own.values()] if isinstance(answer, wire.RoundAnswer) else []


def _is_exact(score: Score) -> bool:
    return score.noise == 0 and score.num_images > 0


def _cells(score: Score) -> list[int]:
    """Cells of every table of counts, and what is left out of each class."""
    tables = (score.confusion_CC, score.histogram_C2B, score.calibration_2K)
    return [*(int(cell) for table in tables for cell in table.ravel()), *score.left_out_C]


# --- shared ----------------------------------------------------------------------------------


def _raise_if_any(violations: Sequence[RuleViolation]) -> None:
    if not violations:
        return
    details = "\n".join(
        f"  {violation.rule}: {violation.message} ({violation.limit})" for violation in violations
    )
    reason = "; ".join(f"{violation.rule}: {violation.message}" for violation in violations)
    raise PolicyRefusal(f"this site's policy refuses the plan:\n{details}", reason[:_LONGEST_REASON])


def _matches(name: str, patterns: Sequence[str] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _quoted(name: str) -> str:
    """A name that came from the server: short, and without line breaks for a log."""
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...")


def _listed(patterns: Sequence[str] | None) -> str:
    return ", ".join(patterns or ())
