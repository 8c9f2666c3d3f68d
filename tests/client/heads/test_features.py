"""Features are what the classifier sees, in one row an image."""

import pytest
import timm
import torch
from torch import nn

from client.heads import features
from common.errors import ConfigError, ConsiliumError

# One of each family of the paper, in timm's small test versions.
FAMILIES = ("test_convnext", "test_vit", "test_efficientnet", "test_resnet", "test_nfnet", "test_byobnet")


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_what_the_classifier_sees(name):
    model = (
        timm.create_model(name, num_classes=3, img_size=32)
        if "vit" in name
        else timm.create_model(name, num_classes=3)
    )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        rows, logits = features.with_logits(model, images)
        assert rows.shape == (2, model.num_features)
        torch.testing.assert_close(logits, model(images))


def test_a_named_layer_is_pooled_whatever_its_shape():
    assert features.pooled(torch.ones(2, 5, 4, 4), "x").shape == (2, 5)
    assert features.pooled(torch.ones(2, 4, 4, 5), "x").shape == (2, 5)  # windows of a transformer
    assert features.pooled(torch.ones(2, 9, 5), "x").shape == (2, 5)
    with pytest.raises(
        ConfigError, match=r"x gives \[2, 3, 4, 5\], expected a map with as many rows as columns"
    ):
        features.pooled(torch.ones(2, 3, 4, 5), "x")


def test_a_layer_that_is_not_there_is_named_with_those_that_are():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ConfigError, match=r"no module 'blocks.9'; it has 0, 1"):
        features.with_logits(model, torch.ones(2, 3, 2, 2), "blocks.9")
    rows, logits = features.with_logits(model, torch.ones(2, 3, 2, 2), "0")
    assert rows.shape == (2, 12)
    assert logits.shape == (2, 3)


def test_features_that_are_no_numbers_are_counted(generate_images):
    class Broken(nn.Module):
        def forward_features(self, images_BCHW):
            return images_BCHW.mean((2, 3))

        def forward_head(self, seen_BF, pre_logits):
            return torch.where(seen_BF > 0, seen_BF, float("nan"))

        def get_classifier(self):
            return nn.Identity()

    images = generate_images(6)
    asked = {"layer": None, "device": torch.device("cpu"), "precision": "float32"}
    wrong = int((images.pixels_NCHW.mean((2, 3)) <= 0).any(1).sum())
    with pytest.raises(ConsiliumError, match=f"not finite numbers on {wrong} of 6 images"):
        features.extract(Broken(), images, **asked)
    # With privacy such an image counts as zeros: an error would say without noise that there is one.
    rows_NF, logits_NC = features.extract(Broken(), images, **asked, private=True)
    zero = ~rows_NF.any(axis=1)
    assert zero.sum() == wrong
    assert (rows_NF[~zero] > 0).all()
    assert not logits_NC[zero].any()
