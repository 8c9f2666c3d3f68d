"""`out_of_distribution` of a study: which head its sums are of, and where it cannot go."""

from collections.abc import Callable

import pytest

from common.config import StudyConfig

MakeStudy = Callable[..., StudyConfig]


def titles(study: StudyConfig) -> tuple[str, ...]:
    return () if study.heads is None else study.heads.titles


def test_a_study_that_lists_no_discriminant_on_all_features_gets_one(make_study: MakeStudy) -> None:
    study = make_study(out_of_distribution={})
    assert titles(study) == ("federated.lda",)
    assert StudyConfig.model_validate(study.model_dump(mode="json")).fingerprint == study.fingerprint
    reduced = {"federated": [{"kind": "lda", "name": "few", "pca": 8}]}
    assert titles(make_study(out_of_distribution={}, heads=reduced)) == ("federated.few", "federated.lda")


def test_sums_of_a_listed_or_final_discriminant_are_asked_for_once(make_study: MakeStudy) -> None:
    listed = {"federated": [{"kind": "lda", "name": "wide"}]}
    for study in (
        make_study(out_of_distribution={}, heads=listed),
        make_study(out_of_distribution={}, final_head="federated_lda"),
    ):
        assert len(titles(study)) == 1
        assert study.outlier_head is not None
        assert study.outlier_head.title == titles(study)[0].removeprefix("federated.")


def test_another_head_of_the_name_that_it_would_have_is_refused(make_study: MakeStudy) -> None:
    heads = {"federated": [{"kind": "nearest_mean", "name": "lda"}]}
    with pytest.raises(ValueError, match="calls another head so"):
        make_study(out_of_distribution={}, heads=heads)


def test_a_study_with_noise_has_no_outlier_score(make_study: MakeStudy) -> None:
    with pytest.raises(ValueError, match="does not go with privacy; leave out_of_distribution out"):
        make_study(out_of_distribution={}, privacy={"noise": 1.0, "sampling_rate": 0.1})


def test_a_study_without_it_is_as_it_was(make_study: MakeStudy) -> None:
    assert "out_of_distribution" not in make_study().model_dump()
    assert titles(make_study()) == ()
