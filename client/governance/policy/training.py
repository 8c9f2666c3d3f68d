"""Rules about what a plan has a site train with: weights, images, epochs, and what leaves of them."""

from collections.abc import Iterator

import numpy as np

from client.config import PolicyConfig
from client.governance.facts import BuiltStudy, Facts, RuleViolation
from client.governance.policy.violations import of_size, of_tensors, quoted
from common import wire
from common.config import LocalConfig, Scaffold, StudyConfig
from common.masking.tables import num_words
from common.weights import num_bytes


def rules_of_training(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> Iterator[RuleViolation]:
    """What the study asks of a training site. It counts for each plan: a step towards a head is no way around."""
    yield from _epochs(plan.study, policy, facts.built)
    yield from _seen(plan.study, policy)
    yield from _exposure(policy, facts.built)
    yield from _images(policy, facts.built)
    yield from of_tensors(_names_of_tensors(plan, facts), policy)
    yield from of_size("max_mib_up", "an answer", _answer_bytes(plan, facts), policy.max_mib_up)


def rules_of_weights(plan: wire.Plan, policy: PolicyConfig, facts: Facts) -> Iterator[RuleViolation]:
    """The size of a plan, and the weights in it."""
    size = max(facts.num_bytes, _tensor_bytes(plan, facts) * _sets_of_tensors(plan.study))
    yield from of_size("max_mib_down", "a plan", size, policy.max_mib_down)
    yield from _weights(plan, policy, facts)


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
            _other_first_weights(plan.study),
            "other first weights are not allowed; own_first_weights: false allows those that a study names",
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


def _other_first_weights(study: StudyConfig) -> str:
    if study.start_from is None:
        return "the first weights are not those that this site builds from the study"
    return f"the study starts from {quoted(study.start_from.name)} (start_from), and this site builds its first weights"


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
    if study.privacy is not None and study.privacy.sampling_rate is not None:
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
    words = (
        num_words(len(plan.study.classes)) * len(plan.score) + 1 if isinstance(plan, wire.RoundPlan) else 0
    )
    return 8 * words + sum(16 * int(np.prod(spec.shape)) for spec in facts.built.layout.values())
