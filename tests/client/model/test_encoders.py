"""Names, sizes and shapes of encoders; nothing here needs memory for weights."""

import pytest
from torch.nn.modules.batchnorm import _BatchNorm

from client.model.encoders import PAPER_ENCODERS, architecture, preprocessing, timm_name
from common.config import ClassifierConfig
from common.errors import ConfigError

# Millions of weights with 7 classes, and features of the head.
PAPER = {
    "convnext_t": (27.8, 768),
    "convnext_s": (49.5, 768),
    "convnext_b": (87.6, 1024),
    "convnext_l": (196.2, 1536),
    "swin_t": (27.5, 768),
    "swin_s": (48.8, 768),
    "swin_b": (86.8, 1024),
    "swin_v2_t": (27.6, 768),
    "swin_v2_s": (49.0, 768),
    "swin_v2_b": (86.9, 1024),
    "maxvit_t": (30.4, 512),
    "vit_l_16": (303.3, 1024),
}


def test_the_paper_has_twelve_encoders():
    assert PAPER_ENCODERS.keys() == PAPER.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "millions", "features"), [(n, *v) for n, v in PAPER.items()])
def test_an_encoder_of_the_paper_has_its_size_and_features(encoder, millions, features):
    model = architecture(ClassifierConfig(encoder=encoder), num_classes=7, device="meta")
    num_weights = sum(weight.numel() for weight in model.parameters())
    assert round(num_weights / 1e6, 1) == millions
    assert model.num_features == features
    assert model.get_classifier().out_features == 7
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("encoder", PAPER)
def test_only_maxvit_has_batch_norm(encoder):
    model = architecture(ClassifierConfig(encoder=encoder), num_classes=7, device="meta")
    has_batch_norm = any(isinstance(layer, _BatchNorm) for layer in model.modules())
    assert has_batch_norm == (encoder == "maxvit_t")


@pytest.mark.parametrize(
    ("mistyped", "meant"), [("convnet_t", "convnext_t"), ("swinv2_t", "swin_v2_t"), ("resnet_18", "resnet18")]
)
def test_a_mistyped_encoder_brings_up_the_one_meant(mistyped, meant):
    with pytest.raises(ConfigError, match=f"no encoder '{mistyped}'; did you mean .*{meant}"):
        timm_name(mistyped)


def test_a_name_unlike_any_brings_up_the_papers():
    with pytest.raises(ConfigError, match="the paper's are convnext_t, "):
        timm_name("?")


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:somewhere", "timm/resnet18"])
def test_a_name_cannot_reach_out(name):
    with pytest.raises(ConfigError, match="has no encoder"):
        timm_name(name)


def test_unknown_weights_of_a_known_encoder_bring_up_the_known_ones():
    with pytest.raises(ConfigError, match=r"no weights 'a9_in9k' of resnet18; use .*resnet18\.a1_in1k"):
        timm_name("resnet18.a9_in9k")


def test_timms_own_names_pass_through():
    assert timm_name("resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert timm_name("tf_efficientnet_lite0") == "tf_efficientnet_lite0"


def test_preprocessing_is_timms_with_the_papers_crop():
    found = preprocessing(ClassifierConfig(encoder="tf_efficientnet_lite0"))
    assert (found.image_size, found.mean, found.std) == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert found.interpolation == "bicubic"
    assert found.stored_size == 256  # 224 / 0.875


def test_the_study_may_choose_another_image_size():
    assert preprocessing(ClassifierConfig(encoder="swin_v2_t")).image_size == 256
    assert preprocessing(ClassifierConfig(encoder="swin_v2_t", image_size=96)).image_size == 96


@pytest.mark.slow
def test_a_size_that_an_encoder_cannot_take_brings_up_those_that_it_can():
    with pytest.raises(ConfigError, match=r"test_vit cannot take 100 pixels a side; it can take 32, 64, 96,"):
        architecture(ClassifierConfig(encoder="test_vit", image_size=100), num_classes=7, device="meta")
