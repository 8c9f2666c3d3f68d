"""A new classifier starts with small weights, so that the first loss is that of a guess: ln(classes)."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from client.model.build import build
from client.model.encoders import PAPER_ENCODERS
from client.model.parameters import head_names
from common.config import Bottleneck, ClassifierConfig

SMALL = (
    "test_vit",
    "test_convnext",
    "test_efficientnet",
    "test_resnet",
    "mobilenetv2_100",
    "tf_efficientnet_lite0",
)
SIZES = {"maxvit_t": 224, "vit_l_16": 32, "swin_v2_t": 64, "swin_v2_s": 64, "swin_v2_b": 64}


def first_loss(encoder: str, size: int, num_classes: int, **settings: Any) -> float:
    """Of some images of noise, in training; the mean over all labels that each could have."""
    config = ClassifierConfig(encoder=encoder, image_size=size, **settings)
    model = build(config, num_classes, seed=0, weights_dir=None).model
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.train()(images)
    return float(-log_softmax(logits, dim=1).mean())


@pytest.mark.parametrize("num_classes", [2, 7])
@pytest.mark.parametrize("encoder", SMALL)
def test_the_first_loss_is_that_of_a_guess(encoder: str, num_classes: int) -> None:
    guess = math.log(num_classes)
    assert first_loss(encoder, 64 if "test" not in encoder else 32, num_classes) == pytest.approx(
        guess, rel=0.1
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoder", PAPER_ENCODERS)
def test_the_first_loss_of_each_of_the_papers_encoders_is_that_of_a_guess(encoder: str) -> None:
    assert first_loss(encoder, SIZES.get(encoder, 32), 7) == pytest.approx(math.log(7), rel=0.1)


def test_the_first_loss_behind_an_adapter_is_that_of_a_guess() -> None:
    assert first_loss("test_vit", 32, 7, tuning=Bottleneck()) == pytest.approx(math.log(7), rel=0.1)


def test_a_head_of_zeros_guesses_exactly() -> None:
    assert first_loss("test_vit", 32, 7, head_start="zeros") == pytest.approx(math.log(7), rel=1e-6)


def test_the_librarys_own_start_of_mobilenet_is_14_times_as_large() -> None:
    """Uniform between -1 / sqrt(7) and 1 / sqrt(7): a standard deviation of 0.22."""
    spread = {}
    for start in ("small", "library"):
        config = ClassifierConfig(encoder="mobilenetv2_100", image_size=32, head_start=start)
        model = build(config, 7, seed=0, weights_dir=None).model
        spread[start] = model.get_parameter("classifier.weight").detach().std().item()
    assert spread["small"] == pytest.approx(0.01, rel=0.05)
    assert spread["library"] == pytest.approx(1 / math.sqrt(7 * 3), rel=0.05)


def test_only_the_head_is_drawn_again() -> None:
    models = [
        build(
            ClassifierConfig(encoder="test_vit", image_size=32, head_start=start), 3, seed=0, weights_dir=None
        ).model
        for start in ("small", "library")
    ]
    differing = {
        name
        for (name, one), (_, other) in zip(*(model.named_parameters() for model in models), strict=True)
        if not torch.equal(one, other)
    }
    assert differing <= set(head_names(models[0]))
    assert differing
