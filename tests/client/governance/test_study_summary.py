"""What an approver reads of a study: all that the approval binds."""

from collections.abc import Callable
from typing import Any

import pytest

from client.governance.study_summary import lines
from common.config import StudyConfig

MakeStudy = Callable[..., StudyConfig]


def test_a_study_is_summed_up_with_all_that_its_approval_binds(make_study: MakeStudy) -> None:
    study = make_study(
        name="skin",
        classes=("mel", "nv"),
        sites={"train": ("north", "south"), "evaluate": ("east",), "required": 1},
        rounds=50,
        local={
            "epochs": 2,
            "batch_size": 16,
            "optimizer": {"kind": "adamw", "lr": 3e-4},
            "augmentation": "paper",
        },
    )
    assert list(lines(study)) == [
        "classifier test_convnext, classes mel, nv",
        "starts from random weights; trains and sends all layers",
        "50 rounds of 2 epoch(s), fedavg",
        "steps on 16 images, adamw with learning rate 0.0003, constant schedule, precision auto, augmentation paper",
        "trains: north, south; scores only: east; goes on with 1 training site(s)",
        "scores up to 51 sets of weights on validation images, one of them on test images",
        "sends sums over test patients once, each with a random number that stays at the site, for intervals of the "
        "figures",
        "fits no classical heads",
        "the server sees this site's own updates",
        "puts no noise on what leaves: a single patient may show in it",
        "compares no images between sites",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"heads": {"local": [{"kind": "knn"}], "every": 5}},
            "fits classical heads on features: local.knn, every 5 rounds",
        ),
        (
            {"out_of_distribution": {}},
            "counts once how far validation images are from the training images' features, for an outlier score",
        ),
        (
            {
                "privacy": {"kind": "dp_sgd", "noise": 1.5, "sampling_rate": 0.1},
                "local": {"epochs": 2, "loss": "cross_entropy"},
            },
            "NOISE 1.5 on gradients of patients shrunk to 1, each drawn with a chance of 0.1, 20 steps a round; no "
            "score of a training site leaves",
        ),
        (
            {
                "privacy": {
                    "kind": "dp_sgd",
                    "noise": 1.5,
                    "sampling_rate": 0.1,
                    "heads": {"noise": 2, "max_feature_norm": 10},
                    "scores": {"noise": 4},
                },
                "heads": {"federated": [{"kind": "lda", "scale": False}]},
                "rounds": 0,
                "local": {},
            },
            "NOISE 2 on sums of features shrunk to 10, once, for all heads; NOISE 4 on scores of the final weights on "
            "test images, once",
        ),
        ({"overlap": {}}, "COMPARES images between sites, as keyed hashes of each image"),
        (
            {"model": {"encoder": "test_vit", "weights": {"kind": "hub"}, "trainable": "head"}},
            "starts from weights of a public hub, which this site FETCHES; trains and sends the classifier alone",
        ),
        (
            {"model": {"encoder": "test_vit", "tuning": {"kind": "lora"}}},
            "starts from random weights; trains and sends what lora adds, and the classifier",
        ),
        (
            {"model": {"encoder": "test_vit", "trainable": {"last_blocks": 2}}},
            "starts from random weights; trains and sends the classifier and the last 2 groups of layers",
        ),
    ],
)
def test_what_a_person_has_to_know_stands_out(
    make_study: MakeStudy, changes: dict[str, Any], line: str
) -> None:
    assert line in list(lines(make_study(**changes)))


def test_heads_that_travel_are_named_with_what_they_are_made_of(make_study: MakeStudy) -> None:
    travels = {"travels": True}
    local = [{"kind": "svm_rbf", "name": "logistic", **travels}, {"kind": "lda", **travels}, {"kind": "knn"}]
    found = [line for line in lines(make_study(heads={"local": local})) if "SENDS its own heads" in line]
    start, end = (
        "a training site SENDS its own heads, which all sites score: ",
        "; only kinds that policy.heads_may_leave lists leave",
    )
    assert found == [
        f"{start}local.lda (lda), made of sums over a class's images{end}",
        f"{start}local.logistic (svm_rbf), made of FEATURES OF SINGLE PATIENTS{end}",
    ]
    assert not [line for line in lines(make_study(heads={"local": [{"kind": "knn"}]})) if "SENDS" in line]
