import copy

import pytest
import torch
from torch import nn

from client.governance import study_summary
from client.model.build import build
from client.model.parameters import partition
from client.training.fit import StudyPosition, fit
from client.training.mixing import amplitude_mix, mixed_amplitudes, mixed_styles, mixstyle, places
from common.config import ClassifierConfig, LocalConfig
from common.errors import ConfigError


def model_of(encoder):
    return build(ClassifierConfig(encoder=encoder, image_size=64), 3, seed=0, weights_dir=None).model


def test_an_image_takes_the_mean_and_deviation_of_its_partner():
    # One channel, two pixels: 1 and 3 have mean 2 and deviation 1, 10 and 18 have 14 and 4.
    features = torch.tensor([[[[1.0, 3.0]]], [[[10.0, 18.0]]]])
    partner = torch.tensor([1, 0])
    own, others = torch.ones(2), torch.zeros(2)
    torch.testing.assert_close(mixed_styles(features, partner, own), features)
    torch.testing.assert_close(
        mixed_styles(features, partner, others).flatten(1),
        torch.tensor([[10.0, 18.0], [1.0, 3.0]]),
        atol=1e-4,
        rtol=0,
    )
    half = mixed_styles(features, partner, torch.tensor([0.5, 1.0]))  # mean 8, deviation 2.5
    torch.testing.assert_close(half[0].flatten(), torch.tensor([5.5, 10.5]), atol=1e-4, rtol=0)


def test_no_gradient_flows_through_the_styles():
    features = torch.tensor([[[[1.0, 3.0]]], [[[10.0, 18.0]]]], requires_grad=True)
    mixed_styles(features, torch.tensor([1, 0]), torch.zeros(2))[0, 0, 0, 0].backward()
    # (x - 2) / 1 * 4 + 14 at x: a slope of 4, and none in the second image.
    torch.testing.assert_close(features.grad.flatten(), torch.tensor([4.0, 0.0, 0.0, 0.0]), atol=1e-3, rtol=0)


def test_amplitudes_are_mixed_and_phases_stay():
    # Two flat images have one amplitude each, their sum; a quarter from 8 to 4 makes 5 of 4.
    flat = torch.tensor([4.0, 8.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    mixed = mixed_amplitudes(flat, torch.tensor([1, 0]), torch.tensor([0.25, 0.0]))
    torch.testing.assert_close(mixed[:, 0, 0, 0], torch.tensor([5.0, 8.0]))
    noise = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    done = mixed_amplitudes(noise, torch.tensor([1, 0]), torch.ones(2))
    before, after = torch.fft.fft2(noise), torch.fft.fft2(done)
    torch.testing.assert_close(after.abs(), before.abs()[[1, 0]])
    torch.testing.assert_close(after / after.abs(), before / before.abs())


def test_amplitudes_of_as_many_images_are_mixed_as_the_study_says():
    images = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    torch.testing.assert_close(amplitude_mix(images, 0.0), images)
    changed = (amplitude_mix(images, 0.3) - images).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert 40 < int(changed.sum()) < 80


def test_styles_are_mixed_while_it_is_entered_and_no_longer():
    model = model_of("resnet18").eval()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(images)
        torch.manual_seed(0)
        with mixstyle(model, 1.0):
            assert not torch.allclose(model(images), plain)
        with mixstyle(model, 0.0):
            assert torch.equal(model(images), plain)
        assert torch.equal(model(images), plain)


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenetv2_100", "tf_efficientnet_lite0", "convnext_atto"])
def test_styles_of_cnns_are_mixed_in_two_places(encoder):
    assert len(places(model_of(encoder))) == 2


@pytest.mark.parametrize("encoder", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_an_encoder_without_such_features_is_refused_with_what_to_do(encoder):
    with pytest.raises(ConfigError, match=r"mixstyle is for CNNs .* set it to 0"):
        places(build(ClassifierConfig(encoder=encoder), 3, seed=0, weights_dir=None).model)


def test_places_are_found_in_the_image_tower_of_a_larger_model():
    whole = nn.Module()
    whole.image = copy.deepcopy(model_of("resnet18"))
    assert places(whole) == [whole.image.layer1, whole.image.layer2]


@pytest.mark.parametrize("kind", ["mixstyle", "amplitude_mix"])
def test_batches_of_one_image_have_nobody_to_mix_with(kind):
    with pytest.raises(ValueError, match="found batches of 1"):
        LocalConfig(batch_size=1, **{kind: 0.5})


def test_a_hospital_reads_that_styles_are_mixed():
    assert study_summary._steps(LocalConfig(mixstyle=0.5)).endswith("augmentation paper, mixstyle 0.5")


@pytest.mark.parametrize("kind", ["mixstyle", "amplitude_mix"])
def test_mixed_styles_change_the_training_and_the_same_seed_repeats_it(generate_images, kind):
    images = generate_images(8)

    def trained(share):
        config = ClassifierConfig(encoder="resnet18", image_size=32)
        model = build(config, 3, seed=0, weights_dir=None).model
        local = LocalConfig(batch_size=4, augmentation="none", **{kind: share})
        fit(
            model,
            images,
            local,
            parts=partition(model, config),
            progress=StudyPosition(round=1, rounds=1),
            penalty=None,
            device=torch.device("cpu"),
            seed=1,
            num_classes=3,
        )
        return model.fc.weight.detach()

    plain, one, same = trained(0.0), trained(1.0), trained(1.0)
    assert torch.equal(one, same)
    assert not torch.equal(one, plain)
