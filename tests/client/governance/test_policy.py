"""Every rule of a hospital's policy, allowed and refused, by hand."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from client.config import Hours, PolicyConfig, SiteConfig, load_site
from client.data.manifest import ImageRow, Manifest
from client.data.references import PictureFile
from client.governance.facts import BuiltStudy, Facts
from client.governance.policy import (
    check,
    enforce,
    enforce_answer,
    enforce_slopes,
    epochs,
    is_open,
    next_opening,
)
from client.governance.small_cells import usable
from common import wire
from common.config import LocalConfig, StudyConfig
from common.errors import ConfigError, PolicyRefusal
from common.metrics import count, empty
from common.metrics.replicates import NUM_REPLICATES
from common.metrics.subgroups import SubgroupCounts
from common.weights import TensorSpec, digest
from common.wire import head_steps
from tests.places import CONFIGS

MakeStudy = Callable[..., StudyConfig]

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=timezone(timedelta(hours=1)))
# 48 images; 1,000 float32 and 24 float64: 4,000 + 192 = 4,192 bytes
BUILT = BuiltStudy(
    train_counts=(8, 0, 40),
    layout={
        "head.weight": TensorSpec(shape=(10, 100), dtype="float32"),
        "stem.weight": TensorSpec(shape=(4, 6), dtype="float64"),
    },
    weights_digest=digest({}),  # of the weights in `round_plan`
)
MIB = 2**20


def facts(**changes: Any) -> Facts:
    known: dict[str, Any] = {
        "now": NOON,
        "decision": "undecided",
        "rounds_today": 0,
        "num_bytes": 1000,
        "arrays_digest": digest({}),
        "built": BUILT,
    }
    return Facts(**known | changes)


def policy(**rules: Any) -> PolicyConfig:
    return PolicyConfig.model_validate(rules)


def enrol_plan(study: StudyConfig, site: str = "north", want_weights: bool = False) -> wire.EnrolPlan:
    return wire.EnrolPlan(plan_id="e", site=site, study=study, want_weights=want_weights)


def round_plan(
    study: StudyConfig, *, train: bool = True, site: str = "north", weights: Any = None
) -> wire.RoundPlan:
    return wire.RoundPlan(plan_id="r", site=site, study=study, round=1, train=train, weights=weights or {})


def rules(study: StudyConfig, policy: PolicyConfig, **known: Any) -> list[str]:
    return [refusal.rule for refusal in check(round_plan(study), policy, facts(**known))]


def test_a_site_without_a_policy_takes_every_plan(make_study: MakeStudy) -> None:
    study = make_study(local={"epochs": 10**6})
    for plan in (enrol_plan(study, want_weights=True), round_plan(study), round_plan(study, train=False)):
        assert check(plan, PolicyConfig(), facts(rounds_today=10**6, num_bytes=2**40)) == []


# The tiny study is called `tiny`, trains test_convnext for 1 epoch a round; the site has 48 images.
@pytest.mark.parametrize(
    ("rule", "allowing", "refusing"),
    [
        ("studies", ["other", "tin*"], ["other", "Tiny", "tin"]),
        ("encoders", ["test_convnext"], ["convnext", "test_convnext2", "TEST_*"]),
        ("max_epochs_per_round", 1, 0.99),
        ("max_rounds_per_day", 4, 3),
        ("min_train_images", 48, 49),  # 8 + 40
        ("min_class_images", 8, 9),  # the class without images is not present
        ("tensors", ["head.*", "stem.weight"], ["head.*"]),
        ("max_mib_up", 4192 / MIB, 4191 / MIB),
        ("max_mib_down", 5000 / MIB, 4999 / MIB),
        ("hours", "12:00-12:01", "12:01-12:00"),
        ("ask", False, True),
        ("min_cohort", 1, 9),
        ("max_runs", 2, 1),
        ("max_evaluations_per_day", 8, 7),
        ("max_device_minutes_per_day", 12.6, 12.5),
        ("min_batch", 6, 7),
        ("max_weight_change", 0.5, 0.4),
    ],
)
def test_each_rule_allows_up_to_its_limit_and_refuses_beyond(
    make_study: MakeStudy, rule: str, allowing: object, refusing: object
) -> None:
    built = replace(BUILT, fewest_patients=6, largest_share=1 / 6, weight_change=0.5)
    known = {
        "rounds_today": 3, "num_bytes": 5000, "evaluations_today": 7, "device_minutes_today": 12.5, "runs": 2,
        "built": built,
    }  # fmt: skip
    assert rules(make_study(), policy(**{rule: allowing}), **known) == []
    assert rules(make_study(), policy(**{rule: refusing}), **known) == [rule]


@pytest.mark.parametrize(
    ("num_sites", "threshold", "required", "held"),
    [
        (3, None, None, 1),  # 2 x 3 - 3 - 1 = 2, and a sum of three is of two sites more than one
        (5, None, None, 2),  # 2 x 4 - 5 - 1
        (5, 3, None, 0),  # two halves of three share one site
        (5, 4, 4, 2),
        (4, 4, 4, 2),  # all must help, but a sum of four has two honest sites beside two others
    ],
)
def test_masks_hold_while_as_many_sites_work_with_the_server_as_a_site_demands(
    make_study: MakeStudy, num_sites: int, threshold: int | None, required: int | None, held: int
) -> None:
    study = make_study(
        sites={"train": tuple("abcde"[:num_sites]), "required": required},
        secure_aggregation={"threshold": threshold},
        admission={"max_norm_ratio": None},
    )
    assert rules(study, policy(max_colluding=held)) == []
    assert rules(study, policy(max_colluding=held + 1)) == ["max_colluding"]
    assert rules(make_study(), policy(max_colluding=held + 1)) == []


def test_one_patient_may_not_weigh_too_much_in_a_round_whatever_the_batches(make_study: MakeStudy) -> None:
    """A batch of all images, and then one of one patient, whose step is as long."""
    built = replace(BUILT, fewest_patients=40, largest_share=0.5)
    assert rules(make_study(), policy(min_batch=2), built=built) == []
    assert rules(make_study(), policy(min_batch=3), built=built) == ["min_batch"]


def test_a_few_patients_are_left_out_by_no_round(make_study: MakeStudy) -> None:
    built = replace(BUILT, fewest_patients=40, left_out=3)
    assert rules(make_study(), policy(min_batch=3), built=built) == []
    assert rules(make_study(), policy(min_batch=4), built=built) == ["min_batch"]
    assert rules(make_study(), policy(min_batch=4), built=replace(built, left_out=0)) == []


def test_one_patient_may_not_weigh_too_much_in_running_statistics(make_study: MakeStudy) -> None:
    built = replace(BUILT, fewest_patients=40, largest_share_of_statistics=0.26)
    assert rules(make_study(), policy(min_batch=3), built=built) == []
    assert rules(make_study(), policy(min_batch=4), built=built) == ["min_batch"]


def test_a_round_that_is_mostly_one_patients_is_refused_after_it_was_trained() -> None:
    enforce_slopes(1.0, policy())
    enforce_slopes(0.5, policy(max_patient_share=0.5))
    for share in (0.51, float("nan")):
        with pytest.raises(PolicyRefusal) as refused:
            enforce_slopes(share, policy(max_patient_share=0.5))
        assert "max_patient_share: the change of the weights would be of too few" in refused.value.reason
        assert "51" not in refused.value.reason  # what was found stays here


def test_without_a_rule_of_its_own_a_batch_has_as_many_patients_as_a_cell(make_study: MakeStudy) -> None:
    built = replace(BUILT, fewest_patients=4, largest_share=0.1)
    assert rules(make_study(), policy(min_cell=4), built=built) == []
    assert rules(make_study(), policy(min_cell=5), built=built) == ["min_cell"]


def test_other_first_weights_than_the_sites_own_are_refused_unless_they_are_allowed(
    make_study: MakeStudy,
) -> None:
    other = replace(BUILT, weights_digest="another")
    assert rules(make_study(), policy(), built=other) == ["own_first_weights"]
    assert rules(make_study(), policy(own_first_weights=False), built=other) == []


def test_a_study_that_names_given_weights_is_refused_by_the_setting_that_names_them(
    make_study: MakeStudy,
) -> None:
    study = make_study(start_from={"name": "runs/first", "sha256": "a" * 64})
    (refusal,) = check(round_plan(study), policy(), facts(built=replace(BUILT, weights_digest="another")))
    assert (
        refusal.message
        == "the study starts from 'runs/first' (start_from), and this site builds its first weights"
    )
    assert "own_first_weights: false allows" in refusal.limit


def test_weights_of_a_hub_are_refused_unless_they_are_allowed(make_study: MakeStudy) -> None:
    study = make_study(model={"encoder": "test_convnext", "weights": {"kind": "hub"}})
    assert rules(study, policy()) == ["hub_weights"]
    assert rules(study, policy(hub_weights=True)) == []


def test_a_step_towards_a_head_and_an_evaluation_meet_the_rules_about_training(make_study: MakeStudy) -> None:
    """Otherwise each would be a way around what a site says of its images."""
    study = make_study(heads={"federated": [{"kind": "lda"}]})
    strict = policy(min_train_images=10**6, tensors=["head.*"], max_mib_up=0.001, heads=["*"])
    step = wire.HeadPlan(
        plan_id="h", site="north", study=study, round=1, weights_digest="x", arrays={},
        step=head_steps.StatisticsStep(views=()),
    )  # fmt: skip
    for plan in (step, round_plan(study, train=False), enrol_plan(study)):
        refused = {refusal.rule for refusal in check(plan, strict, facts())}
        assert refused == {"min_train_images", "tensors", "max_mib_up"}


def test_an_approved_study_waits_no_more(make_study: MakeStudy) -> None:
    assert rules(make_study(), policy(ask=True), decision="yes") == []


@pytest.mark.parametrize(
    ("local", "num_images", "passes"),
    [
        ({"epochs": 3}, None, 3.0),
        ({}, 48, 1.0),
        ({"steps": 10, "batch_size": 12}, 48, 2.5),  # 10 x 12 / 48
        ({"steps": 10, "batch_size": 12}, None, None),
        ({"steps": 7, "batch_size": "all"}, 48, 7.0),
        ({"steps": 7, "batch_size": 100}, 48, 7.0),  # a batch of 100 is all 48
    ],
)
def test_steps_count_as_passes_over_the_images(
    local: dict[str, Any], num_images: int | None, passes: float | None
) -> None:
    assert epochs(LocalConfig.model_validate(local), num_images) == passes


def test_steps_are_refused_once_the_images_are_counted_without_telling_how_many(
    make_study: MakeStudy,
) -> None:
    study, two = make_study(local={"steps": 10, "batch_size": 12}), policy(max_epochs_per_round=2)
    assert rules(study, two, built=None) == []
    (refusal,) = check(round_plan(study), two, facts())
    assert refusal.message == "the study asks for 10 steps of 12 images a round"
    assert refusal.limit == "2.5, at most 2"  # stays at the site: 120 images / 2.5 = 48


def test_a_round_that_sees_fewer_images_than_a_cell_is_refused(make_study: MakeStudy) -> None:
    study = make_study(local={"steps": 2, "batch_size": 3})
    assert rules(study, policy(min_cell=6)) == []  # 2 x 3
    assert rules(study, policy(min_cell=7)) == ["min_cell"]


def test_all_refusals_are_listed_at_once_and_none_of_the_limits(make_study: MakeStudy) -> None:
    strict = policy(
        studies=["allowed-study"], encoders=["allowed_encoder"], max_epochs_per_round=0.37,
        max_rounds_per_day=53, min_train_images=7919, min_class_images=7907, tensors=["allowed.tensor"],
        max_mib_down=0.0617, max_mib_up=0.00123, ask=True,
    )  # fmt: skip
    with pytest.raises(PolicyRefusal) as caught:
        enforce(round_plan(make_study()), strict, facts(rounds_today=59, num_bytes=MIB))
    reason = caught.value.reason
    for rule in strict.model_fields_set:
        assert f"{rule}: " in reason
        assert f"  {rule}: " in str(caught.value)
    for secret in ("allowed", "0.37", "53", "59", "7919", "7907", "0.0617", "0.00123", "48", "40"):
        assert secret not in reason.replace(make_study().fingerprint[:12], ""), secret
    for limit in ("allowed-study", "at most 0.37", "59 of 53", "48, at least 7919", "8, at least 7907"):
        assert limit in str(caught.value)


def test_before_anything_is_built_names_hours_and_sizes_are_checked(make_study: MakeStudy) -> None:
    strict = policy(encoders=["x"], max_mib_up=0.001, min_train_images=10**6, tensors=["x"])
    weights = {"head.weight": np.zeros(1000, np.float32)}  # 4,000 bytes are 0.0038 MiB
    found = check(round_plan(make_study(), weights=weights), strict, facts(built=None))
    assert [refusal.rule for refusal in found] == ["encoders", "tensors", "max_mib_up"]
    assert [refusal.rule for refusal in check(enrol_plan(make_study()), strict, facts(built=None))] == [
        "encoders"
    ]


def test_a_plan_that_only_scores_is_not_measured_by_rules_about_training(make_study: MakeStudy) -> None:
    strict = policy(
        max_epochs_per_round=0.1, max_rounds_per_day=0, min_train_images=99, tensors=["x"], max_mib_up=1e-6
    )
    study = make_study(sites={"train": ("south",), "evaluate": ("north",)})
    assert check(round_plan(study, train=False), strict, facts()) == []
    assert check(enrol_plan(study), strict, facts()) == []


def test_a_site_that_sends_no_scores_may_train_but_has_nothing_to_do_in_an_evaluation(
    make_study: MakeStudy,
) -> None:
    study = make_study(sites={"train": ("north",), "evaluate": ("unseen",)})
    closed = policy(scores=False)
    assert check(round_plan(study), closed, facts()) == []
    assert check(round_plan(study, train=False), closed, facts()) == []
    for plan in (enrol_plan(study, site="unseen"), round_plan(study, site="unseen", train=False)):
        assert [refusal.rule for refusal in check(plan, closed, facts())] == ["scores"]


def test_rounds_are_counted_for_training_not_for_enrolling(make_study: MakeStudy) -> None:
    assert check(enrol_plan(make_study()), policy(max_rounds_per_day=0), facts()) == []


def test_a_long_name_from_the_server_stays_short(make_study: MakeStudy) -> None:
    study = make_study(model={"encoder": "x" * 200})
    with pytest.raises(PolicyRefusal) as caught:
        enforce(enrol_plan(study), policy(encoders=["swin_t"]), facts())
    assert "\n" not in caught.value.reason
    assert len(caught.value.reason) < 250


# --- hours -----------------------------------------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")


def hours(text: str) -> Hours:
    return Hours.model_validate(text)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("09:00-17:00", ["09:00", "12:00", "16:59"], ["08:59", "17:00", "00:00", "23:59"]),
        ("19:00-07:00", ["19:00", "23:59", "00:00", "06:59"], ["18:59", "07:00", "12:00"]),
        ("00:00-06:00", ["00:00", "05:59"], ["06:00", "23:59"]),
        ("18:00-24:00", ["18:00", "23:59"], ["17:59", "00:00"]),
    ],
)
def test_hours_hold_their_first_minute_and_not_their_last(
    text: str, inside: list[str], outside: list[str]
) -> None:
    assert [is_open(hours(text), time.fromisoformat(clock)) for clock in inside] == [True] * len(inside)
    assert [is_open(hours(text), time.fromisoformat(clock)) for clock in outside] == [False] * len(outside)


def test_the_last_second_before_closing_is_open() -> None:
    assert is_open(hours("19:00-07:00"), time(6, 59, 59, 999999))


@pytest.mark.parametrize(
    ("now", "again"),
    [
        ("2026-11-23T12:00:00+01:00", "2026-11-23T19:00+01:00"),  # today
        ("2026-11-23T18:59:59+01:00", "2026-11-23T19:00+01:00"),
        ("2026-12-31T20:00:00+01:00", "2027-01-01T19:00+01:00"),  # open now; the next time is next year
        ("2026-10-24T20:00:00+02:00", "2026-10-25T19:00+01:00"),  # summer time ends in between
    ],
)
def test_the_next_opening_is_given_by_the_clock_on_the_wall(now: str, again: str) -> None:
    moment = datetime.fromisoformat(now).astimezone(BERLIN)
    assert next_opening(hours("19:00-07:00"), moment).isoformat(timespec="minutes") == again


def test_a_plan_outside_the_hours_learns_when_to_come_back(make_study: MakeStudy) -> None:
    (refusal,) = check(enrol_plan(make_study()), policy(hours="19:00-07:00"), facts())
    assert refusal.message == "this site takes plans again at 2026-11-23T19:00+01:00"


@given(st.times(), st.times(), st.times())
def test_hours_and_the_rest_of_the_day_never_overlap(opens: time, closes: time, now: time) -> None:
    opens, closes = (clock.replace(second=0, microsecond=0) for clock in (opens, closes))
    if opens == closes:
        return
    day, night = f"{opens:%H:%M}-{closes:%H:%M}", f"{closes:%H:%M}-{opens:%H:%M}"
    assert is_open(hours(day), now) != is_open(hours(night), now)
    assert hours(day).model_dump() == day  # what is read is what is written


@pytest.mark.parametrize("text", ["19-07", "25:00-26:00x", "19:60-07:00", "07:00-07:00", "", 1140, None])
def test_hours_that_make_no_sense_are_named(text: object) -> None:
    with pytest.raises(ValidationError, match=r"expected two times of day|leave hours out"):
        Hours.model_validate(text)


# --- what is kept back -----------------------------------------------------------------------


def manifest(*cells: tuple[str, str, int, int]) -> Manifest:
    """(class, side, groups, images of each): group 0 means that no group is known."""
    rows = []
    for label, side, num_groups, num_images in cells:
        for number in range(max(num_groups, 1) * num_images):
            group = f"{label}{side}{number % num_groups}" if num_groups else None
            rows.append(ImageRow(PictureFile(Path(f"{label}{number}")), label, group, side, "row"))
    return Manifest(tuple(rows), ("a", "b", "c"))


def counts(found: Manifest) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return found.class_counts("train"), found.class_counts("test")


def test_classes_with_too_few_patients_are_left_out_on_their_side_only() -> None:
    # a: 3 patients of 4 images train, 2 of 4 test; b: 1 patient of 50 images; c: 3 images of nobody known
    found = manifest(("a", "train", 3, 4), ("a", "test", 2, 4), ("b", "train", 1, 50), ("c", "test", 0, 3))
    assert counts(found) == ((12, 50, 0), (8, 0, 3))
    assert counts(usable(found, policy(min_cell=2))) == ((12, 0, 0), (8, 0, 3))
    assert counts(usable(found, policy(min_cell=3))) == ((12, 0, 0), (0, 0, 3))
    assert counts(usable(found, policy(min_cell=4))) == ((0, 0, 0), (0, 0, 0))
    assert counts(usable(found, policy(scores=False))) == ((12, 50, 0), (0, 0, 0))
    assert usable(found, PolicyConfig()) is found


def test_validation_images_that_may_not_be_scored_train() -> None:
    # a: 9 patients train, 2 are for validation; b: 9 and 4. Each has 2 images.
    found = manifest(
        ("a", "train", 9, 2), ("a", "validation", 2, 2), ("b", "train", 9, 2), ("b", "validation", 4, 2)
    )
    sides = [(policy(min_cell=2), (4, 8)), (policy(min_cell=3), (0, 8)), (policy(min_cell=5), (0, 0))]
    for rules_, (a, b) in [*sides, (policy(scores=False), (0, 0))]:
        left = usable(found, rules_)
        assert left.class_counts("validation") == (a, b, 0)
        assert left.class_counts("train") == (22 - a, 26 - b, 0)
    # One patient has images of both classes: they go together, and class b is then too small as well.
    both = replace(found.rows[-1], label="b", group="avalidation0")
    mixed = replace(found, rows=(*found.rows, both))
    left = usable(mixed, policy(min_cell=5))
    assert left.class_counts("validation") == (0, 0, 0)
    assert len(left.rows) == len(mixed.rows)


def test_a_hospital_can_refuse_to_have_its_images_compared(make_study: MakeStudy) -> None:
    compares = make_study(overlap={})
    assert rules(compares, policy(overlap=False)) == ["overlap"]
    assert rules(compares, PolicyConfig()) == rules(make_study(), policy(overlap=False)) == []
    plan = wire.OverlapPlan(plan_id="o", site="north", study=compares)
    assert [found.rule for found in check(plan, policy(overlap=False), facts())] == ["overlap"]
    hashes = wire.OverlapAnswer(plan_id="o", site="north", check="0" * 16, same=(), similar=())
    with pytest.raises(PolicyRefusal, match="overlap: an answer holds hashes"):
        enforce_answer(hashes, 1, policy(overlap=False))
    enforce_answer(hashes, 1, PolicyConfig())


def test_images_are_compared_only_for_a_study_that_says_so(make_study: MakeStudy) -> None:
    plan = wire.OverlapPlan(plan_id="o", site="north", study=make_study())
    (refusal,) = check(plan, PolicyConfig(), facts())
    assert (refusal.rule, refusal.message) == (
        "overlap",
        "the plan compares images, its study does not",
    )


def answer(**changes: Any) -> wire.RoundAnswer:
    known: dict[str, Any] = {
        "plan_id": "r", "site": "north", "round": 1, "scores": {"validation": empty(3)},
        "num_examples": 48, "num_steps": 6,
        "train_loss": 1.0, "train_s": 1.0, "evaluate_s": 1.0, "delta": {"head.weight": np.zeros(3, np.float32)},
    }  # fmt: skip
    return wire.RoundAnswer.model_validate(known | changes)


def test_what_slips_through_is_stopped_at_the_door() -> None:
    enforce_answer(answer(), 1000, policy(min_cell=5, tensors=["head.*"], max_mib_up=1000 / MIB))
    four = count(
        np.eye(3)[[0, 0, 0, 0]], np.array([1, 1, 1, 1]), 1.0
    )  # four images of class 1, all taken for 0
    with pytest.raises(PolicyRefusal, match="min_cell"):
        enforce_answer(answer(scores={"test": four}), 1000, policy(min_cell=5))
    few = four.model_copy(update={"left_out_C": (0, 2, 0)})
    enforce_answer(answer(scores={"test": few}), 1000, policy(min_cell=5))  # of six images two are left out
    for wrong in (few, four):
        with pytest.raises(PolicyRefusal, match="min_score_cell"):
            enforce_answer(answer(scores={"validation": wrong}), 1000, policy(min_score_cell=5))
    with pytest.raises(PolicyRefusal, match=r"tensors.*head\.weight"):
        enforce_answer(answer(), 1000, policy(tensors=["stem.*"]))
    with pytest.raises(PolicyRefusal, match="max_mib_up"):
        enforce_answer(answer(), 1001, policy(max_mib_up=1000 / MIB))


def by_sex(*of_class: int, unknown: int = 0) -> wire.RoundAnswer:
    """An answer whose test has so many images of one class for each sex, and some of no known sex."""
    confusion_VCC = np.zeros((len(of_class), 3, 3), np.int64)
    confusion_VCC[:, 0, 0] = of_class
    total = sum(of_class) + unknown
    score = count(np.eye(3)[[0] * total], np.zeros(total, np.int64), 1.0)
    return answer(scores={"test": score}, subgroups={"sex": SubgroupCounts(confusion_VCC=confusion_VCC)})


def test_a_subgroup_that_slips_through_is_stopped_at_the_door() -> None:
    at_five = policy(min_subgroup=5)
    for fine in (by_sex(5, 6), by_sex(5, 0), by_sex(5, 6, unknown=5), by_sex(0, 0, unknown=3)):
        enforce_answer(fine, 1000, at_five)
    for wrong in (by_sex(5, 4), by_sex(5, 6, unknown=4)):
        with pytest.raises(PolicyRefusal, match="min_subgroup"):
            enforce_answer(wrong, 1000, at_five)
    with pytest.raises(PolicyRefusal, match="min_subgroup"):
        enforce_answer(by_sex(5, 6).model_copy(update={"scores": {}}), 1000, at_five)
    with pytest.raises(PolicyRefusal, match="subgroups"):
        enforce_answer(by_sex(5, 6), 1000, policy(subgroups=False, min_subgroup=5))


def test_no_head_leaves_whose_kind_the_policy_does_not_list() -> None:
    """By default only heads that are made of sums, whatever name a study gives the others."""

    def head(kind: str) -> wire.HeadAnswer:
        return wire.HeadAnswer(
            plan_id="h", site="north", round=1, step="travel", train_counts=(9, 9), seconds=0.1,
            arrays={f"fitted/{kind}/logistic/shift": np.zeros(2)},
        )  # fmt: skip

    enforce_answer(head("logistic"), 1, PolicyConfig())
    with pytest.raises(PolicyRefusal, match="heads_may_leave: an answer holds a head of kind svm_rbf"):
        enforce_answer(head("svm_rbf"), 1, PolicyConfig())
    enforce_answer(head("svm_rbf"), 1, policy(heads_may_leave=["svm_rbf"]))
    with pytest.raises(PolicyRefusal, match="kind logistic"):
        enforce_answer(head("logistic"), 1, policy(heads_may_leave=[]))


def test_of_a_site_with_privacy_neither_exact_scores_nor_subgroups_pass_the_door() -> None:
    exact = by_sex(5, 6)
    noisy = exact.scores["test"].model_copy(update={"noise": 3.0})
    with pytest.raises(PolicyRefusal, match="scores without noise"):
        enforce_answer(exact.model_copy(update={"subgroups": {}}), 1000, policy(), is_noisy=True)
    with pytest.raises(PolicyRefusal, match="counts by subgroup without noise"):
        enforce_answer(exact.model_copy(update={"scores": {"test": noisy}}), 1000, policy(), is_noisy=True)
    passing = exact.model_copy(update={"scores": {"test": noisy}, "subgroups": {}})
    enforce_answer(passing, 1000, policy(min_score_cell=100), is_noisy=True)


# --- the YAML --------------------------------------------------------------------------------


def test_all_mistakes_of_a_policy_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(
        "name: a\ndata: {kind: folders, root: i}\nstate_dir: s\n"
        "policy: {studies: [], max_epoch_per_round: 3, hours: 7pm-7am, timezone: Berlin, min_cell: 1}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_site(tmp_path / "site.yaml")
    for mistake in (
        "policy.studies:", "policy.max_epoch_per_round: no such setting; did you mean policy.max_epochs_per_round?",
        "policy.hours: found '7pm-7am', expected two times of day like", "policy.timezone: found 'Berlin'",
        "policy.min_cell:",
    ):  # fmt: skip
        assert mistake in str(caught.value)


def test_the_shipped_example_names_every_rule_and_survives_being_written() -> None:
    example = load_site(CONFIGS / "site" / "example.yaml")
    assert example.policy.model_fields_set == set(PolicyConfig.model_fields)
    assert SiteConfig.model_validate(example.model_dump(mode="json")) == example


@pytest.mark.parametrize("rules", [{"intervals": False}, {"scores": False}, {"min_score_cell": 3}])
def test_sums_over_test_patients_are_stopped_at_the_door(rules: dict[str, Any]) -> None:
    row = (0.5,) * 10  # three classes: 3 * 3 + 1 numbers
    sums = {"num_patients": 20, "test_set": "0" * 16, "sums": (row,) * NUM_REPLICATES}
    sent = answer(replicates=sums)
    enforce_answer(sent, 1, PolicyConfig())
    with pytest.raises(PolicyRefusal, match="intervals: an answer holds sums over test patients"):
        enforce_answer(sent, 1, policy(**rules))
    with pytest.raises(PolicyRefusal, match="intervals"):
        enforce_answer(sent, 1, PolicyConfig(), is_noisy=True)
    with pytest.raises(PolicyRefusal, match="sums are over too few test patients"):
        enforce_answer(answer(replicates=sums | {"num_patients": 19}), 1, PolicyConfig())
