"""The experiments that ship: what each runs at either size."""

from collections import Counter

import pytest
from pydantic import ValidationError

from common.config import ClipConfig
from common.errors import ConfigError
from server.paper import experiment
from server.paper.experiment import Experiment
from server.simulation.grid import studies

TWELVE = {
    "convnext_t", "convnext_s", "convnext_b", "convnext_l", "swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s",
    "swin_v2_b", "maxvit_t", "vit_l_16",
}  # fmt: skip
OWN = {"RN50", "ViT-B-32", "ViT-B-16"}
OPTIMIZERS = {"sgd", "adam", "adamw", "adadelta", "adagrad"}


def test_the_seven_experiments_ship() -> None:
    assert experiment.names() == [
        "clip-brain-mri", "clip-brats2019", "clip-ham10000", "federated-skin", "heads-isic2018-unseen",
        "optimizers-brats2019", "optimizers-ham10000",
    ]  # fmt: skip


@pytest.mark.parametrize("name", experiment.names())
def test_an_experiment_has_the_papers_encoders_and_three_seeds(name: str) -> None:
    found = experiment.load(name)
    every = studies(found.grid_of("paper"), name)
    assert {study.model.encoder for study in every.values()} >= TWELVE
    assert {seed for _, seed in every} == {0, 1, 2}
    small = studies(found.grid_of("small"), name)
    assert {study.model.encoder for study in small.values()} == {"mobilenetv2_100", "tf_efficientnet_lite0"}
    assert {study.model.image_size for study in small.values()} == {64}


@pytest.mark.parametrize("name", [name for name in experiment.names() if name.startswith("clip-")])
def test_clip_has_twelve_encoders_and_its_own_three_with_every_optimizer_and_the_classifiers_beside(
    name: str,
) -> None:
    every = studies(experiment.load(name).grid_of("paper"), name)
    kinds = Counter((type(study.model), study.seed) for study in every.values())
    assert kinds[ClipConfig, 0] == (12 + 3) * 5
    assert len(every) == 3 * (15 + 12) * 5
    assert {study.local.optimizer.kind for study in every.values()} == OPTIMIZERS
    own = [study.model for study in every.values() if study.model.encoder in OWN]
    assert all(isinstance(model, ClipConfig) and model.library == "open_clip" for model in own)


def test_the_federated_experiment_has_both_algorithms_on_the_four_sources() -> None:
    every = studies(experiment.load("federated-skin").grid_of("paper"), "federated-skin").values()
    assert {study.algorithm.kind for study in every} == {"fedavg", "fedprox"}
    assert {study.sites.train for study in every} == {
        ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
    }
    assert len(every) == 12 * 2 * 5 * 3


def test_the_unseen_images_are_tested_on_and_lose_what_the_training_set_has_too() -> None:
    found = experiment.load("heads-isic2018-unseen")
    assert found.tested_on == "isic_test"
    assert set(found.drop_shared) == {"isic_test", "isic_validation"}
    assert found.data_sets == ("ham10000", "isic2018_test", "isic2018_validation")


def test_an_experiment_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="there is no experiment federated-skni; there are clip-brain-mri"):
        experiment.load("federated-skni")


def test_a_site_that_is_not_there_is_named() -> None:
    values = experiment.load("federated-skin").model_dump()
    with pytest.raises(ValidationError, match="vienna is no site of the experiment"):
        Experiment.model_validate(values | {"tested_on": "vienna"})
