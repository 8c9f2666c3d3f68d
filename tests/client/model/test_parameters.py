import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from client.model import parameters as tensors
from client.model.build import build
from client.model.parameters import partition
from common.config import ClassifierConfig, LastBlocks
from common.errors import ConfigError, WireError

WITH_BATCH_NORM = ["test_efficientnet", "test_maxvit", "test_resnet"]
EVERY_CHOICE = [
    {"trainable": trainable, "batch_norm": batch_norm}
    for trainable in ("all", "head", LastBlocks(last_blocks=2))
    for batch_norm in ("aggregate", "local", "frozen")
]


def make(encoder, **settings):
    config = ClassifierConfig(encoder=encoder, image_size=32, **settings)
    model = build(config, 3, seed=1, weights_dir=None).model
    return model, partition(model, config)


def batch_norm_names(model):
    return {
        f"{path}.{name}"
        for path, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
        for name in ("weight", "bias", "running_mean", "running_var")
    }


@pytest.mark.parametrize("encoder", [*WITH_BATCH_NORM, "test_vit", "test_convnext"])
@pytest.mark.parametrize("settings", EVERY_CHOICE, ids=str)
def test_every_float_tensor_is_in_exactly_one_part_and_integers_in_none(encoder, settings):
    model, parts = make(encoder, **settings)
    found = sorted(parts.shared + parts.local + parts.frozen)
    floats = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    assert found == sorted(floats)
    assert not any("num_batches_tracked" in name for name in tensors.layout(model, parts))


@pytest.mark.parametrize("encoder", WITH_BATCH_NORM)
def test_aggregated_batch_norm_travels_with_its_statistics(encoder):
    model, parts = make(encoder)
    assert batch_norm_names(model) <= set(parts.shared)
    assert parts.local == parts.frozen == ()
    roles = {name: spec.role for name, spec in tensors.layout(model, parts).items()}
    assert {role for name, role in roles.items() if "running_" in name} == {"statistic"}
    assert {role for name, role in roles.items() if "running_" not in name} == {"parameter"}


@pytest.mark.parametrize("encoder", WITH_BATCH_NORM)
def test_local_batch_norm_stays_whole(encoder):
    model, parts = make(encoder, batch_norm="local")
    assert set(parts.local) == batch_norm_names(model)
    assert parts.frozen == ()


@pytest.mark.parametrize("encoder", WITH_BATCH_NORM)
def test_local_statistics_stay_and_what_gradients_train_travels(encoder):
    model, parts = make(encoder, batch_norm="local_statistics")
    assert set(parts.local) == {name for name in batch_norm_names(model) if "running_" in name}
    assert batch_norm_names(model) - set(parts.local) <= set(parts.shared)
    assert parts.frozen == ()


@pytest.mark.parametrize("encoder", WITH_BATCH_NORM)
def test_frozen_batch_norm_is_trained_but_for_its_statistics(encoder):
    model, parts = make(encoder, batch_norm="frozen")
    assert set(parts.frozen) == {name for name in batch_norm_names(model) if "running_" in name}
    assert batch_norm_names(model) - set(parts.frozen) <= set(parts.shared)
    assert parts.local == ()


@pytest.mark.parametrize("encoder", WITH_BATCH_NORM)
def test_frozen_batch_norm_computes_alike_in_training_and_in_use(encoder):
    model, parts = make(encoder, batch_norm="frozen")
    before, images_BCHW = tensors.frozen_digest(model, parts), torch.rand(4, 3, 32, 32)
    tensors.train_mode(model, parts)
    in_training_BC = model(images_BCHW)
    assert tensors.frozen_digest(model, parts) == before
    alone_1C = model(images_BCHW[:1])
    torch.testing.assert_close(alone_1C, in_training_BC[:1])  # no image sees the others of its batch
    torch.testing.assert_close(model.eval()(images_BCHW), in_training_BC)


def test_a_model_without_batch_norm_keeps_nothing_local():
    _, parts = make("test_vit", batch_norm="local")
    assert parts.local == parts.frozen == ()


def test_only_the_head_travels_when_only_the_head_is_trained():
    model, parts = make("test_efficientnet", trainable="head")
    assert parts.shared == ("classifier.weight", "classifier.bias")
    assert parts.local == ()
    assert batch_norm_names(model) <= set(parts.frozen)


def test_the_last_blocks_are_timms_groups_with_the_norm_that_belongs_to_them():
    _, parts = make("test_vit", trainable=LastBlocks(last_blocks=2))
    tops = {".".join(name.split(".")[:2]) for name in parts.shared}
    assert tops == {
        "blocks.4",
        "blocks.5",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }


def test_a_norm_that_timm_puts_with_the_classifier_does_not_count_as_a_block():
    _, parts = make("test_convnext", trainable=LastBlocks(last_blocks=1))
    assert {".".join(name.split(".")[:2]) for name in parts.shared} == {"stages.3", "head.norm", "head.fc"}


def test_statistics_of_trained_blocks_travel_and_those_of_frozen_blocks_do_not():
    _, parts = make("test_efficientnet", trainable=LastBlocks(last_blocks=1))
    assert any("running_mean" in name for name in parts.shared)
    assert any("running_mean" in name for name in parts.frozen)


def test_more_blocks_than_there_are_is_an_error_that_counts_them():
    # the patch embedding and six blocks
    with pytest.raises(ConfigError, match="test_vit has 7 groups of layers below its head, found 8"):
        make("test_vit", trainable=LastBlocks(last_blocks=8))
    _, parts = make("test_vit", trainable=LastBlocks(last_blocks=7))
    assert parts.frozen == ()


def test_gradients_reach_the_trained_parameters_only():
    model, parts = make("test_vit", trainable="head")
    tensors.freeze(model, parts)
    assert [n for n, weight in model.named_parameters() if weight.requires_grad] == [
        "head.weight",
        "head.bias",
    ]


def test_frozen_layers_compute_as_in_use_and_trained_ones_as_in_training():
    model, parts = make("test_efficientnet", trainable="head")
    tensors.train_mode(model, parts)
    assert model.classifier.training
    assert not any(layer.training for layer in model.modules() if isinstance(layer, _BatchNorm))
    assert not any(layer.training for layer in model.blocks.modules())

    model, parts = make("test_efficientnet", batch_norm="local")
    tensors.train_mode(model, parts)
    assert all(layer.training for layer in model.modules())


def test_statistics_of_a_frozen_encoder_do_not_move():
    model, parts = make("test_efficientnet", trainable="head")
    before = tensors.frozen_digest(model, parts)
    tensors.train_mode(model, parts)
    model(torch.ones(2, 3, 32, 32))
    assert tensors.frozen_digest(model, parts) == before
    model.train()
    model(torch.ones(2, 3, 32, 32))
    assert tensors.frozen_digest(model, parts) != before


def test_what_travels_comes_back_unchanged():
    model, parts = make("test_efficientnet", batch_norm="local")
    other = build(
        ClassifierConfig(encoder="test_efficientnet", image_size=32), 3, seed=2, weights_dir=None
    ).model
    tensors.load_shared(other, parts, tensors.shared_arrays(model, parts))
    tensors.load_local(other, parts, tensors.local_arrays(model, parts))
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_arrays_are_copies_in_both_directions():
    model, parts = make("test_vit", trainable="head")
    arrays = tensors.shared_arrays(model, parts)
    arrays["head.bias"] += 1
    assert model.head.bias.abs().sum() == 0
    tensors.load_shared(model, parts, arrays)
    arrays["head.bias"] += 1
    assert model.head.bias.tolist() == [1, 1, 1]


def test_a_model_in_float64_says_so_in_its_layout_and_stays_in_it():
    model, parts = make("test_vit", trainable="head")
    received = tensors.shared_arrays(model, parts)
    tensors.load_shared(model.double(), parts, received)
    assert {spec.dtype for spec in tensors.layout(model, parts).values()} == {"float64"}
    assert {array.dtype for array in tensors.shared_arrays(model, parts).values()} == {np.dtype("float64")}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda arrays: arrays.pop("head.bias"), "head.bias is missing"),
        (lambda arrays: arrays.update(tail=np.zeros(1)), "tail came along"),
        (
            lambda arrays: arrays.update({"head.bias": np.zeros(1)}),
            r"head.bias has shape \[1\], expected \[3\]",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_change_nothing(change, complaint):
    model, parts = make("test_vit", trainable="head")
    arrays = {name: array + 1 for name, array in tensors.shared_arrays(model, parts).items()}
    change(arrays)
    with pytest.raises(WireError, match=complaint):
        tensors.load_shared(model, parts, arrays)
    assert model.head.bias.abs().sum() == 0


def test_the_digest_of_the_frozen_part_follows_its_bits():
    model, parts = make("test_vit", trainable="head")
    before = tensors.frozen_digest(model, parts)
    with torch.no_grad():
        model.head.bias += 1
    assert tensors.frozen_digest(model, parts) == before
    with torch.no_grad():
        model.norm.bias[0] += 1e-7
    assert tensors.frozen_digest(model, parts) != before
