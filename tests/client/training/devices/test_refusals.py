"""Studies whose batches cannot be cut into parts for several devices."""

from collections.abc import Callable

import pytest
import torch

from client.config import SiteConfig
from client.model.build import of_study
from client.model.parameters import partition
from client.study_setup import set_up
from client.training.devices.refusals import require_parts
from common.config import StudyConfig
from common.config.privacy import DpSgdConfig
from common.errors import ConfigError

CPU = torch.device("cpu")
CLIP = {"kind": "clip", "encoder": "test_vit", "image_size": 32, "text": {"kind": "random", "width": 8}}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"model": {"encoder": "test_resnet", "image_size": 32}},
            r"test_resnet trains batch normalisation \(\d+ lay",
        ),
        ({"model": {**CLIP, "loss": "contrastive"}}, "model.loss=contrastive compares all images"),
        ({"model": {**CLIP, "loss": "supervised_contrastive"}}, "supervised_contrastive compares"),
        ({"local": {"amplitude_mix": 0.5}}, "local.amplitude_mix=0.5 mixes the images"),
        (
            {"model": {"encoder": "test_convnext", "image_size": 32}, "local": {"mixstyle": 0.5}},
            "local.mixstyle=0.5",
        ),
    ],
    ids=["batch normalisation", "contrastive", "supervised contrastive", "amplitudes", "styles"],
)
def test_images_that_look_at_each_other_are_refused_before_any_is_read(
    make_site: Callable[..., SiteConfig],
    make_study: Callable[..., StudyConfig],
    changes: dict[str, object],
    why: str,
) -> None:
    study = make_study(**{"model": {"encoder": "test_vit", "image_size": 32}, **changes})
    site = make_site("north")
    with pytest.raises(ConfigError, match=f"device: found several, but .*{why}.*give this site one `device`"):
        set_up(study, site, CPU, [CPU])
    assert set_up(study, site, CPU).further is None


def test_frozen_batch_normalisation_and_a_site_that_only_scores_are_no_hindrance(
    make_site: Callable[..., SiteConfig], make_study: Callable[..., StudyConfig]
) -> None:
    frozen = make_study(model={"encoder": "test_resnet", "image_size": 32, "trainable": "head"})
    assert set_up(frozen, make_site("north"), CPU, [CPU]).further is not None
    moving = make_study(
        model={"encoder": "test_resnet", "image_size": 32},
        sites={"train": ["north", "south"], "evaluate": ["east"]},
    )
    set_up(moving, make_site("east", test_only=True), CPU, [CPU])


def test_private_training_stays_on_one_device(make_study: Callable[..., StudyConfig]) -> None:
    plain = make_study(model={"encoder": "test_vit", "image_size": 32})
    model = of_study(plain, None).model
    names = partition(model, plain.model)
    require_parts(plain, model, names)
    private = plain.model_copy(update={"privacy": DpSgdConfig(noise=1.0, sampling_rate=0.5)})
    with pytest.raises(ConfigError, match=r"the study has privacy.*give this site one `device`"):
        require_parts(private, model, names)
