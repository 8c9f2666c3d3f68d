"""Classes that are trained on and that no validation image shows."""

from collections.abc import Callable
from typing import Any

import pytest

from common import wire
from common.config import StudyConfig
from common.errors import ConfigError
from server.enrolment import census, validation_classes
from server.report.markdown import markdown
from server.report.outcome import Outcome
from server.state import Totals

MakeStudy = Callable[..., StudyConfig]
BY_RECALL: dict[str, Any] = {"selection": {"metric": "balanced_accuracy"}}


def held(
    study: StudyConfig, totals: Totals | None = None, **sites: tuple[tuple[int, ...], tuple[int, ...], bool]
) -> census.Census:
    """`held(study, north=(train, validation, withheld))`."""
    return census.count(
        study,
        {
            site: wire.Enrolment(
                plan_id="e", site=site, layout={}, weights_digest="a", frozen_digest="b", preprocessing={},
                train_counts=train, validation_counts=validation, test_counts=(1, 1, 1), device="cpu", weights={},
                withheld=withheld,
            )
            for site, (train, validation, withheld) in sites.items()
        },
        totals,
    )  # fmt: skip


def test_a_study_is_not_chosen_by_images_of_one_class_alone(make_study: MakeStudy) -> None:
    """A model that always says `dark` would have a balanced accuracy of 1.0000."""
    study = make_study(**BY_RECALL)
    found = held(study, north=((9, 5, 4), (3, 0, 0), False), south=((9, 5, 4), (0, 0, 0), False))
    with pytest.raises(ConfigError) as caught:
        validation_classes.require(study, found, ("north",))
    assert (
        "pale (10 training images), red (8 training images) have no validation image at north, so "
        "balanced_accuracy there says nothing of that: raise `split.validation`" in str(caught.value)
    )
    assert str(caught.value).endswith("name other sites in selection.sites, or leave selection out")


def test_a_class_of_twenty_training_images_must_be_among_those_that_choose(make_study: MakeStudy) -> None:
    study = make_study(**BY_RECALL)
    for number, outcome in ((20, "refused"), (19, "warned")):
        found = held(study, north=((99, 99, number), (9, 9, 0), False), south=((9, 9, 0), (9, 9, 0), False))
        if outcome == "refused":
            with pytest.raises(
                ConfigError, match=r"red \(20 training images\) has no validation image at north"
            ):
                validation_classes.require(study, found, ("north", "south"))
        else:
            validation_classes.require(study, found, ("north", "south"))


def test_a_small_class_is_a_warning_in_the_log(
    make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(**BY_RECALL)
    found = held(study, north=((99, 99, 3), (9, 9, 0), False))
    validation_classes.require(study, found, ("north",))
    assert (
        "red (3 training images) has no validation image at north: balanced_accuracy, by which the study chooses, "
        "says nothing of that" in caplog.text
    )


def test_only_the_sites_that_decide_count(make_study: MakeStudy) -> None:
    study = make_study(**BY_RECALL)
    found = held(study, north=((50, 50, 50), (9, 9, 9), False), south=((50, 50, 50), (9, 9, 0), False))
    validation_classes.require(study, found, ("north",))
    validation_classes.require(study, found, ("north", "south"))
    with pytest.raises(ConfigError, match=r"red \(100 training images\) has no validation image at south"):
        validation_classes.require(study, found, ("south",))


def test_a_site_whose_policy_withholds_is_named(make_study: MakeStudy) -> None:
    study = make_study(**BY_RECALL)
    found = held(study, north=((50, 50, 50), (9, 9, 0), True))
    with pytest.raises(ConfigError, match="north may have a few that the policy there leaves out"):
        validation_classes.require(study, found, ("north",))


def test_a_site_that_is_not_there_may_hold_the_class(make_study: MakeStudy) -> None:
    study = make_study(**BY_RECALL)
    found = held(study, north=((50, 50, 50), (9, 9, 0), False))
    validation_classes.require(study, found, ("north", "south"))


def test_a_class_that_the_study_begins_without_is_a_warning(
    make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(**BY_RECALL, untrained_classes=("pale", "red"))
    validation_classes.require(study, held(study, north=((9, 99, 99), (9, 0, 0), False)), ("north",))
    assert "pale (99 training images), red (99 training images) have no validation image" in caplog.text


def test_without_a_choice_the_log_and_the_report_say_it(
    make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study()
    found = held(study, north=((50, 50, 50), (9, 9, 0), False), south=((50, 50, 50), (0, 0, 0), False))
    validation_classes.require(study, found, ())
    said = "red (100 training images) has no validation image at north"
    assert f"{said}: the curves over the rounds say nothing of that" in caplog.text
    page = markdown(Outcome(study, (), None, synthetic=False, census=found))
    assert f"{said}. The curves over the rounds say nothing of that." in page.replace("\\", "")
    whole = held(study, north=((50, 50, 50), (9, 9, 9), False))
    assert "no validation image" not in markdown(Outcome(study, (), None, synthetic=False, census=whole))


def test_under_masks_the_sums_tell(make_study: MakeStudy, caplog: pytest.LogCaptureFixture) -> None:
    totals = Totals(
        study="f", sites=("a", "b", "c"),
        train_counts=(50, 50, 50), validation_counts=(9, 9, 0), test_counts=(9, 9, 9),
    )  # fmt: skip
    masks = {
        "sites": {"train": ("a", "b", "c")},
        "secure_aggregation": {},
        "admission": {"max_norm_ratio": None},
    }
    plain, choosing = make_study(**masks), make_study(**masks, **BY_RECALL)
    said = "red (50 training images) has no validation image at a, b, c"
    validation_classes.require(plain, held(plain, totals), ())
    assert f"{said}: the curves" in caplog.text
    found = held(choosing, totals)
    with pytest.raises(ConfigError, match=r"red \(50 training images\) has no validation image at a, b, c"):
        validation_classes.require(choosing, found, choosing.sites.train)
    page = markdown(Outcome(choosing, (), None, synthetic=False, census=found))
    assert f"{said}. The study chooses by their balanced_accuracy, which" in page.replace("\\", "")
