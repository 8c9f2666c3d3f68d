from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from common.config import DpSgdConfig, LocalConfig, StudyConfig

MakeStudy = Callable[..., StudyConfig]
PRIVACY = {"kind": "dp_sgd", "noise": 1.0, "sampling_rate": 0.1}
PAID = {**PRIVACY, "heads": {"noise": 2.0, "max_feature_norm": 10.0}}
LDA = {"kind": "lda", "scale": False}
LOCAL = {"loss": "cross_entropy"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"local": {"class_weights": "site"}}, "class_weights"),
        ({"local": {**LOCAL, "absent_classes": "mask"}}, "absent_classes=mask"),
        ({"local": {**LOCAL, "amplitude_mix": 0.5}}, "mix the patients of a batch"),
        ({"local": {**LOCAL, "compile": True}}, r"local\.compile"),
        ({"heads": {"federated": [{"kind": "lda"}]}}, "does not pay for heads"),
        ({"final_head": "federated_lda"}, "does not pay for heads"),
        ({"privacy": PAID}, "pays for heads, and the study has none"),
        ({"privacy": PAID, "heads": {"local": [{"kind": "knn"}]}}, r"does not go with heads\.local"),
        ({"privacy": PAID, "heads": {"federated": [LDA], "every": 2}}, r"does not go with heads\.every"),
        (
            {"privacy": PAID, "heads": {"federated": [{"kind": "vote"}]}},
            "federated.vote, which is no head of sums",
        ),
        ({"privacy": PAID, "final_head": "federated_lda"}, "list the head with scale: false"),
        ({"privacy": PAID, "heads": {"federated": [{**LDA, "shrinkage": [0.1, 0.5]}]}}, "give one"),
        (
            {
                "privacy": {**PRIVACY, "scores": {"noise": 3.0}},
                "secure_aggregation": {"threshold": 2},
                "admission": {"max_norm_ratio": None},
                "aggregation": {"kind": "mean", "max_share": 1},
            },
            "noise, which are not masked",
        ),
        ({"overlap": {}}, "does not go with overlap"),
        ({"personalisation": {"kind": "local_head"}}, "does not go with personalisation"),
        ({"selection": {}}, r"name sites of sites\.evaluate"),
    ],
)
def test_what_would_leave_without_noise_is_refused_with_what_to_change(
    make_study: MakeStudy, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValidationError, match=why):
        make_study(**{"privacy": PRIVACY, "local": LOCAL, **changes})


def test_a_study_without_privacy_has_the_fingerprint_that_it_had(make_study: MakeStudy) -> None:
    assert '"privacy"' not in make_study().model_dump_json()
    assert make_study(privacy=PRIVACY, local=LOCAL).fingerprint != make_study(local=LOCAL).fingerprint


def test_an_epoch_draws_each_patient_once_on_average() -> None:
    privacy = DpSgdConfig(noise=1, sampling_rate=0.1)
    assert privacy.num_steps(LocalConfig(epochs=2)) == 20
    assert privacy.num_steps(LocalConfig(epochs=0.01)) == 1
    assert privacy.num_steps(LocalConfig(steps=7)) == 7


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "noise and sampling_rate"),
        ({"noise": 1.0}, "sampling_rate"),
        ({"sampling_rate": 0.1}, "noise"),
    ],
)
def test_a_study_that_trains_needs_noise_and_a_sampling_rate(
    make_study: MakeStudy, given: dict[str, float], missing: str
) -> None:
    with pytest.raises(ValidationError, match=f"privacy lacks {missing}, which a study that trains needs"):
        make_study(rounds=3, privacy={"kind": "dp_sgd", **given})


def test_a_study_of_heads_alone_needs_neither(make_study: MakeStudy) -> None:
    study = make_study(
        rounds=0,
        local={},
        privacy={"kind": "dp_sgd", "heads": {"noise": 2.0, "max_feature_norm": 5.0}},
        heads={"federated": [{"kind": "lda", "scale": False}]},
    )
    assert study.privacy is not None
    assert study.privacy.model_dump(mode="json").keys().isdisjoint({"noise", "sampling_rate"})
    assert StudyConfig.model_validate(study.model_dump(mode="json")).fingerprint == study.fingerprint
