"""Features are what the head reads."""

import pytest
import torch

from client.heads.features import features
from client.model.build import build
from common.config import ClassifierConfig, ClipConfig, RandomText

ENCODERS = ("test_convnext", "test_efficientnet", "test_vit", "mobilenetv2_100")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_head_makes_its_logits_of_the_features(encoder):
    config = ClassifierConfig(encoder=encoder, image_size=32)
    model = build(config, 3, seed=1, weights_dir=None).model.eval()
    images_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits_BC = model.get_classifier()(features(model, images_BCHW))
        assert torch.equal(logits_BC, model(images_BCHW))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_clip_has_the_features_of_its_encoder_before_the_projection(encoder):
    """The same seed draws the same encoder, whatever comes after it."""
    plain = build(ClassifierConfig(encoder=encoder, image_size=32), 3, seed=1, weights_dir=None).model.eval()
    config = ClipConfig(encoder=encoder, image_size=32, text=RandomText(width=16))
    clip = build(config, 3, seed=1, weights_dir=None).model.eval()
    clip.image.load_state_dict({n: t for n, t in plain.state_dict().items() if n in clip.image.state_dict()})
    images_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features_BF = features(clip, images_BCHW)
        assert torch.equal(features_BF, features(plain, images_BCHW))
        assert torch.equal(clip.head(features_BF), clip(images_BCHW))
