"""Whether a site's own policy would refuse a study, said before the study runs."""

from pathlib import Path
from typing import Any

import pytest

from client.config import FoldersData, SiteConfig
from client.preflight.agreement import findings
from common.config import StudyConfig
from tests.client.preflight.test_role import images


@pytest.fixture
def study(make_study: Any) -> StudyConfig:
    """`tiny`: goes on with one of two training sites."""
    return StudyConfig.model_validate(make_study(sites={"train": ("north", "south"), "required": 1}))


def site(**policy: Any) -> SiteConfig:
    data = FoldersData(root=Path("/images"))
    return SiteConfig.model_validate({"name": "north", "data": data, "state_dir": "/state", "policy": policy})


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        ({"min_cohort": 2}, "the study goes on with 1 training site(s) (policy.min_cohort: at least 2)"),
        ({"studies": ["skin-*"]}, "the study is 'tiny' (policy.studies: allowed: "),
        ({"min_train_images": 20}, "(policy.min_train_images: 19, at least 20)"),
        ({"only_masked": True}, "the study has no secure_aggregation (policy.only_masked: "),
    ],
)
def test_each_rule_that_refuses_the_study_stops_with_its_limit(
    study: StudyConfig, policy: dict[str, Any], rule: str
) -> None:
    (finding,) = findings(study, site(**policy), images(19, 5))
    assert finding.rank == "stops"
    assert finding.what.startswith("the policy refuses study tiny: ")
    assert rule in finding.what


def test_all_rules_that_refuse_it_are_said_at_once(study: StudyConfig) -> None:
    found = list(findings(study, site(min_cohort=2, min_train_images=20), images(19, 5)))
    assert len(found) == 2


@pytest.mark.parametrize("hours", [None, "00:00-00:01"])
def test_what_a_person_or_the_clock_decides_later_does_not_stop(
    study: StudyConfig, hours: str | None
) -> None:
    (finding,) = findings(study, site(ask=True, max_runs=1, hours=hours), images(19, 5))
    assert (finding.rank, finding.what) == (
        "fine", "the policy allows what study tiny asks for, once a person here has approved it",
    )  # fmt: skip


def test_of_a_study_that_does_not_name_the_site_nothing_is_said(study: StudyConfig) -> None:
    other = site(min_cohort=2).model_copy(update={"name": "elsewhere"})
    assert list(findings(study, other, images(19, 5))) == []
