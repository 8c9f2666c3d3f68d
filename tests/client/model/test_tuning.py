"""Little is trained, only that travels, and it is what it says."""

import pytest
import torch
from torch import nn

from client.model.build import build
from client.model.encoders import architecture
from client.model.parameters import freeze, frozen_digest, partition
from client.model.tuning import Adapter, install, merged
from client.training.fit import StudyPosition, fit
from common.config import (
    AdamW,
    BitFit,
    Bottleneck,
    ClassifierConfig,
    ClipConfig,
    LinearProbe,
    LocalConfig,
    Lora,
    RandomText,
)
from common.errors import ConfigError

LORA = Lora(rank=2, alpha=4, layers="all")
TUNINGS = (LinearProbe(), BitFit(), LORA, Bottleneck())


def make(tuning, encoder="test_efficientnet", kind=ClassifierConfig, **settings):
    config = kind(encoder=encoder, image_size=32, tuning=tuning, **settings)
    model = build(config, 3, seed=1, weights_dir=None).model
    return model, partition(model, config)


def images_of(number=2):
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def outputs(model):
    with torch.no_grad():
        return model.eval()(images_of())


@pytest.mark.parametrize("tuning", TUNINGS, ids=lambda tuning: tuning.kind)
@pytest.mark.parametrize("kind", ["classifier", "clip"])
def test_only_what_travels_changes(tuning, kind, generate_images):
    """test_efficientnet has batch normalisation: its running means stay as they came, too."""
    settings = {} if kind == "classifier" else {"kind": ClipConfig, "text": RandomText(width=16)}
    model, parts = make(tuning, **settings)
    before, travels = (
        frozen_digest(model, parts),
        {n: t.clone() for n, t in model.state_dict().items() if n in parts.shared},
    )
    fit(
        model,
        generate_images(6),
        LocalConfig(steps=2, batch_size=4, augmentation="none", optimizer=AdamW(lr=0.01)),
        parts=parts,
        progress=StudyPosition(1, 1),
        penalty=None,
        device=torch.device("cpu"),
        seed=1,
        num_classes=3,
    )
    assert frozen_digest(model, parts) == before
    assert parts.local == ()
    after = model.state_dict()
    assert all(not torch.equal(after[name], tensor) for name, tensor in travels.items())
    trained = sum(after[name].numel() for name in parts.shared)
    # The encoder has 256 features: the adapter's two matrices alone are 2 * 256 * 64 of 102,508 weights.
    assert trained < sum(tensor.numel() for tensor in after.values()) / 3


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_convnext", "test_vit"])
def test_merged_weights_give_the_same_outputs_under_the_encoders_own_names(encoder):
    model, _ = make(LORA, encoder)
    plain = build(ClassifierConfig(encoder=encoder, image_size=32), 3, seed=1, weights_dir=None).model
    assert torch.allclose(outputs(model), outputs(plain))  # a fresh product is 0
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=draws)
    whole = merged(model)
    assert not torch.allclose(outputs(model), outputs(plain), atol=1e-5)
    assert torch.allclose(outputs(model), outputs(whole), atol=1e-5)
    assert whole.state_dict().keys() == plain.state_dict().keys()


def test_the_attention_of_open_clips_tower_is_tuned_and_merged(tiny_clip):
    settings = {"library": "open_clip", "kind": ClipConfig, "text": RandomText(width=16)}
    model, parts = make(Lora(layers="attention"), tiny_clip, **settings)
    freeze(model, parts)
    model(images_of()).sum().backward()
    products = {name: p for name, p in model.named_parameters() if ".lora_B" in name}
    assert len(products) == 4  # two blocks: queries, keys and values as one, and what comes out
    assert all(p.grad.abs().sum() > 0 for p in products.values())
    with torch.no_grad():
        for parameter in products.values():
            parameter.fill_(0.05)
    assert torch.allclose(outputs(model), outputs(merged(model)), atol=1e-5)


class Lends(nn.Module):
    """Its first layer only lends its weight, as swin v2's qkv does."""

    def __init__(self):
        super().__init__()
        self.lent, self.used, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def get_classifier(self):
        return self.head

    def forward(self, images_BCHW):
        return self.head(self.used(images_BCHW.mean(dim=(2, 3)) @ self.lent.weight.T))


def test_a_layer_that_only_lends_its_weight_gets_no_product_that_would_be_passed_by():
    model = Lends()
    install(model, ClassifierConfig(encoder="lends", tuning=Lora()), image_size=8)
    assert {name.split(".")[0] for name, _ in model.named_parameters() if "lora" in name} == {"used"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "layers", "num_layers"),
    [
        ("swin_t", "attention", 24),  # 12 blocks: queries, keys and values as one, and what comes out
        ("swin_v2_t", "attention", 36),  # 12 blocks: what comes out, and two for the positions
        ("maxvit_t", "attention", 44),  # 11 blocks of two attentions
        ("convnext_t", "linear", 36),  # 18 blocks of two
        ("convnext_t", "all", 40),  # and the stem and three downsamplings
    ],
)
def test_the_papers_encoders_are_tuned_where_they_have_the_layers(encoder, layers, num_layers):
    config = ClassifierConfig(encoder=encoder, tuning=Lora(layers=layers))
    model = architecture(config, 7, "meta")
    install(model, config, image_size=256 if "v2" in encoder else 224)
    assert sum(name.endswith("lora_A.default.weight") for name, _ in model.named_parameters()) == num_layers


@pytest.mark.parametrize(
    ("encoder", "layers", "instead"),
    [("test_convnext", "attention", "linear and all"), ("test_efficientnet", "linear", "all")],
)
def test_an_encoder_without_such_layers_says_which_it_has(encoder, layers, instead):
    with pytest.raises(ConfigError, match=rf"layers={layers}: {encoder} has no such layers.*for {instead}\."):
        make(Lora(layers=layers), encoder)


def test_an_adapter_mixes_what_it_reads_with_what_it_makes_of_it():
    adapter = Adapter(4, Bottleneck(reduction=2, ratio=0.25))
    assert adapter.down.out_features == 2
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(0)
        adapter.up.bias.fill_(8)
    # 0.25 * relu(0 + 8) + 0.75 * 4 = 5
    assert torch.equal(adapter(torch.full((1, 4), 4.0)), torch.full((1, 4), 5.0))


def test_bitfit_trains_biases_and_the_head():
    model, parts = make(BitFit(), "test_vit")
    head = {"head.weight", "head.bias"}
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert set(parts.shared) == head | biases


def test_a_linear_probe_is_the_head_alone():
    assert set(make(LinearProbe(), "test_vit")[1].shared) == {"head.weight", "head.bias"}
