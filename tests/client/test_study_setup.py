"""The setup of one study at a site: the same model at every site, and only images that the policy allows."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from client.config import PolicyConfig, SiteConfig
from client.study_setup import StudySetup, first_weights, set_up
from common.config import StudyConfig
from common.errors import ConfigError, SiteDataError
from common.weights import digest

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
CPU = torch.device("cpu")


@pytest.fixture
def setup(make_site: MakeSite, make_study: MakeStudy) -> StudySetup:
    return set_up(make_study(), make_site("north"), CPU)


def test_two_sites_build_the_same_weights_from_the_seed(
    setup: StudySetup, make_site: MakeSite, make_study: MakeStudy
) -> None:
    other = set_up(make_study(), make_site("south"), CPU)
    assert (setup.weights_digest, setup.frozen_digest) == (other.weights_digest, other.frozen_digest)
    assert set_up(make_study(seed=4), make_site("west"), CPU).weights_digest != setup.weights_digest


def test_first_weights_are_those_before_training_even_if_the_model_has_changed(
    setup: StudySetup, make_site: MakeSite
) -> None:
    with torch.no_grad():
        for parameter in setup.model.parameters():
            parameter.add_(1)
    weights = first_weights(setup, make_site("north"))
    assert digest(weights) == setup.weights_digest


def test_a_study_in_float64_is_set_up_in_float64(make_site: MakeSite, make_study: MakeStudy) -> None:
    study = make_study()
    precise = study.model_copy(update={"local": study.local.model_copy(update={"precision": "float64"})})
    site = make_site("north")
    built = set_up(precise, site, CPU)
    assert {parameter.dtype for parameter in built.model.parameters()} == {torch.float64}
    assert {array.dtype for array in first_weights(built, site).values()} == {np.dtype("float64")}


def test_a_study_that_mixes_styles_of_an_encoder_without_any_is_refused_before_the_first_round(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    study = make_study()
    model = study.model.model_copy(update={"encoder": "test_vit"})
    local = study.local.model_copy(update={"mixstyle": 0.5})
    with pytest.raises(ConfigError, match="mixstyle is for CNNs"):
        set_up(study.model_copy(update={"model": model, "local": local}), make_site("north"), CPU)


def test_images_that_the_policy_leaves_out_are_not_in_the_store(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    # Ten images of each class: seven for training, one for validation, which trains where it cannot be scored, and two
    # for testing, which are fewer than five.
    everything = set_up(make_study(), make_site("north"), CPU)
    allowed = set_up(make_study(), make_site("south", policy=PolicyConfig(min_cell=5)), CPU)
    counts = [
        (setup.store.class_counts("train"), setup.store.class_counts("test"))
        for setup in (everything, allowed)
    ]
    assert counts == [((7, 7, 7), (2, 2, 2)), ((8, 8, 8), (0, 0, 0))]


def test_a_site_that_only_scores_reads_that_it_takes_no_split(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    few = make_site("north", per_class=1)  # 3 images; a test share of 0.2 takes 5 groups
    scores = make_study(sites={"train": ("south",), "evaluate": ("north",)})
    with pytest.raises(SiteDataError, match=r"asks this site only to score .*kind: none, all: test"):
        set_up(scores, few, CPU)
    with pytest.raises(SiteDataError) as caught:
        set_up(make_study(), few, CPU)
    assert "only to score" not in str(caught.value)
