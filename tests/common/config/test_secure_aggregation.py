"""Settings of a study with secure aggregation: what does not go with it is said when the study is read."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from common.config import StudyConfig

MakeStudy = Callable[..., StudyConfig]
FOUR = {
    "sites": {"train": ("a", "b", "c", "d")},
    "secure_aggregation": {},
    "admission": {"max_norm_ratio": None},
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sites": {"train": ("a",)}}, "needs two training sites or more in a round, found 1"),
        (
            {"secure_aggregation": {"threshold": 2}},
            "threshold=2 must be more than half of the 4 training sites",
        ),
        (
            {"secure_aggregation": {"threshold": 5}},
            "threshold=5 must be more than half of the 4 training sites",
        ),
        (
            {"sites": {"train": ("a", "b", "c", "d"), "required": 2}},
            "threshold=3 is more than the 2 site\\(s\\) with which a round goes on",
        ),
        ({"aggregation": {"kind": "median"}}, "goes with aggregation.kind=mean"),
        ({"aggregation": {"kind": "mean", "norm_clip": 1.0}}, "without norm_clip"),
        (
            {"aggregation": {"kind": "mean", "max_share": 0.4}},
            "leave aggregation.weigh_sites_by and max_share out",
        ),
        ({"aggregation": {"kind": "mean", "weigh_sites_by": "equal"}}, "weighs a site by its images"),
        ({"admission": {}}, "set admission.max_norm_ratio: null"),
        ({"admission": {"max_norm_ratio": None, "max_norm": 5}}, "leave admission.max_norm out"),
        ({"algorithm": {"kind": "fednova"}}, "does not go with algorithm=fednova"),
        ({"transport": {"up": "int8"}}, "masked numbers cannot be rounded"),
        (
            {"heads": {"local": [{"kind": "knn"}], "federated": [{"kind": "lda"}]}},
            "does not go with local heads \\(knn\\), which are each site's own",
        ),
        (
            {"heads": {"local": [{"kind": "svm_rbf", "travels": True}]}},
            "does not go with local heads \\(svm_rbf\\)",
        ),
        ({"heads": {"federated": [{"kind": "vote"}]}}, "does not go with a vote \\(vote\\)"),
        ({"heads": {"federated": [{"kind": "lda"}], "every": 2}}, "does not go with heads.every"),
        (
            {
                "heads": {"federated": [{"kind": "lda"}]},
                "privacy": {
                    "noise": 1.0,
                    "sampling_rate": 0.1,
                    "heads": {"noise": 1.0, "max_feature_norm": 1.0},
                },
            },
            "does not go with privacy.heads",
        ),
        ({"sites": {"train": ("a", "b", "c"), "evaluate": ("d",)}}, "does not go with sites.evaluate"),
        ({"selection": {"sites": ("a",)}}, "leave selection.sites out"),
        ({"personalisation": {"kind": "ditto"}}, "models of a site's own \\(personal\\)"),
        ({"subgroups": {"sex": ("female", "male")}}, "does not go with subgroups"),
        ({"overlap": {}}, "does not go with overlap"),
    ],
)
def test_what_does_not_go_with_masks_is_named(
    make_study: MakeStudy, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        make_study(**{**FOUR, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"final_head": "federated_lda"},
        {"final_head": "federated_ridge"},
        {"final_head": "federated_logistic"},
        {"out_of_distribution": {}},
        {"heads": {"federated": [{"kind": "naive_bayes"}, {"kind": "linear_svm"}, {"kind": "rff_svm"}]}},
    ],
)
def test_heads_that_are_made_of_sums_go_with_masks(make_study: MakeStudy, changes: dict[str, Any]) -> None:
    study = make_study(**{**FOUR, **changes})
    assert study.heads is not None
    assert study.mask_threshold_of("heads") == 3


@pytest.mark.parametrize(("sites", "threshold"), [(2, 2), (3, 3), (4, 3), (6, 5), (9, 7)])
def test_more_than_two_thirds_of_the_sites_open_a_sum_if_the_study_says_nothing(
    make_study: MakeStudy, sites: int, threshold: int
) -> None:
    names = tuple("abcdefghi"[:sites])
    assert make_study(**{**FOUR, "sites": {"train": names}}).mask_threshold == threshold


def test_all_sites_score_at_the_end_so_more_than_half_of_all_open_that_sum(make_study: MakeStudy) -> None:
    drawn = {
        **FOUR,
        "sites": {"train": tuple("abcdefgh"), "per_round": 3},
        "secure_aggregation": {"threshold": 2},
    }
    study = make_study(**drawn)
    assert [study.mask_threshold_of(phase) for phase in ("training", "scoring", "test")] == [2, 5, 5]


def test_a_study_without_masks_has_the_text_and_the_fingerprint_it_had(make_study: MakeStudy) -> None:
    assert "secure_aggregation" not in make_study().model_dump_json()
    assert make_study().mask_threshold == 0
