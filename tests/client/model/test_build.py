import hashlib

import pytest
import timm
import torch
from safetensors.torch import save_file

from client.model import build as build_module
from client.model.build import build
from common.config import ClassifierConfig, FileWeights, HubWeights
from common.errors import ConfigError, SiteDataError

HEAD = ("head.fc.weight", "head.fc.bias")


@pytest.fixture
def tensors():
    """A safetensors file's content: test_convnext with 5 classes, from another seed than the study's."""
    model = build(ClassifierConfig(encoder="test_convnext"), 5, seed=99, weights_dir=None).model
    return dict(model.state_dict())


@pytest.fixture
def study(tmp_path):
    """Writes tensors as the study's weights file and gives the model settings that name it."""

    def write(tensors, **settings):
        path = tmp_path / "start.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        weights = FileWeights(name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        return ClassifierConfig(**{"encoder": "test_convnext", "weights": weights} | settings)

    return write


def same(left, right, names=None):
    return all(torch.equal(left[name], right[name]) for name in (names or left))


def test_one_seed_gives_the_same_bits_at_every_site_and_another_seed_others():
    config = ClassifierConfig(encoder="test_vit", image_size=48)
    first = build(config, 3, seed=1, weights_dir=None).model.state_dict()
    torch.rand(7)  # another site has drawn something before
    second = build(config, 3, seed=1, weights_dir=None).model.state_dict()
    other = build(config, 3, seed=2, weights_dir=None).model.state_dict()
    assert same(first, second)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_building_leaves_torchs_generator_as_it_was():
    before = torch.get_rng_state()
    build(ClassifierConfig(encoder="test_convnext"), 3, seed=1, weights_dir=None)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_is_built_in_float32_with_the_images_it_wants():
    built = build(ClassifierConfig(encoder="test_convnext", image_size=64), 3, seed=1, weights_dir=None)
    assert {tensor.dtype for tensor in built.model.state_dict().values()} == {torch.float32}
    assert built.preprocessing.image_size == 64
    assert built.report.source == "the study's seed"


def test_a_file_with_the_same_classes_gives_every_tensor(tmp_path, tensors, study):
    built = build(study(tensors), 5, seed=1, weights_dir=tmp_path)
    assert same(tensors, built.model.state_dict())
    assert (built.report.missing, built.report.unexpected) == ((), ())
    assert not built.report.reshaped_head


def test_a_file_with_other_classes_gives_all_but_the_head_which_comes_from_the_seed(tmp_path, tensors, study):
    config = study(tensors)
    built = build(config, 3, seed=1, weights_dir=tmp_path)
    again = build(config, 3, seed=1, weights_dir=tmp_path)
    loaded = built.model.state_dict()
    assert built.report.reshaped_head
    assert loaded["head.fc.weight"].shape == (3, 64)
    assert same(tensors, loaded, [name for name in tensors if name not in HEAD])
    assert same(loaded, again.model.state_dict())


def test_half_precision_files_are_read_as_float32(tmp_path, tensors, study):
    config = study({name: tensor.half() for name, tensor in tensors.items()})
    model = build(config, 5, seed=1, weights_dir=tmp_path).model
    assert model.get_classifier().weight.dtype == torch.float32


def test_missing_and_unexpected_tensors_are_reported(tmp_path, tensors, study):
    del tensors["stem.0.bias"]
    tensors["decoder.weight"] = torch.zeros(2)
    report = build(study(tensors), 5, seed=1, weights_dir=tmp_path).report
    assert report.missing == ("stem.0.bias",)
    assert report.unexpected == ("decoder.weight",)


def test_counters_of_batch_norm_are_not_missed(tmp_path, study):
    """timm's own files leave `num_batches_tracked` out."""
    config = ClassifierConfig(encoder="test_efficientnet")
    tensors = build(config, 5, seed=9, weights_dir=None).model.state_dict()
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    assert len(floats) < len(tensors)
    report = build(study(floats, encoder="test_efficientnet"), 5, seed=1, weights_dir=tmp_path).report
    assert report.missing == ()


def test_positions_are_stretched_to_the_studys_image_size(tmp_path, study):
    """160 pixels in patches of 16 are 10 x 10 positions; 32 pixels are 2 x 2."""
    tensors = build(ClassifierConfig(encoder="test_vit"), 5, seed=9, weights_dir=None).model.state_dict()
    model = build(study(tensors, encoder="test_vit", image_size=32), 5, seed=1, weights_dir=tmp_path).model
    assert tensors["pos_embed"].shape[1] - model.pos_embed.shape[1] == 100 - 4
    assert torch.equal(model.head.weight, tensors["head.weight"])


@pytest.mark.parametrize("encoder", ["resnet18", "test_vit", "convnext_atto"])
def test_weights_of_another_model_are_refused_with_the_first_differences(tmp_path, tensors, study, encoder):
    with pytest.raises(SiteDataError, match=f"another model than {encoder}: .*; and [0-9]+ more"):
        build(study(tensors, encoder=encoder), 5, seed=1, weights_dir=tmp_path)


def test_a_tensor_of_another_shape_outside_the_head_is_refused_by_name(tmp_path, tensors, study):
    tensors["stem.0.bias"] = torch.zeros(3)
    with pytest.raises(SiteDataError, match=r"stem\.0\.bias is \[3\], expected \[[0-9]+\]"):
        build(study(tensors), 5, seed=1, weights_dir=tmp_path)


def test_a_wrong_checksum_names_both(tmp_path, tensors, study):
    config = study(tensors)
    expected = config.weights.sha256
    (tmp_path / "start.safetensors").write_bytes(b"damaged")
    found = hashlib.sha256(b"damaged").hexdigest()
    with pytest.raises(SiteDataError, match=f"has SHA-256 {found}, expected {expected}"):
        build(config, 5, seed=1, weights_dir=tmp_path)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path):
    (tmp_path / "start.bin").write_bytes(b"pickle")
    weights = FileWeights(name="start.bin", sha256=hashlib.sha256(b"pickle").hexdigest())
    with pytest.raises(SiteDataError, match="is not a safetensors file"):
        build(ClassifierConfig(encoder="test_convnext", weights=weights), 5, seed=1, weights_dir=tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    config = ClassifierConfig(encoder="test_convnext", weights=FileWeights(name="absent", sha256="0" * 64))
    with pytest.raises(SiteDataError, match="absent cannot be read"):
        build(config, 5, seed=1, weights_dir=tmp_path)
    with pytest.raises(SiteDataError, match="no weights_dir"):
        build(config, 5, seed=1, weights_dir=None)


def test_an_impossible_size_is_the_studys_fault_even_with_a_good_file(tmp_path, tensors, study):
    with pytest.raises(ConfigError, match="cannot take 16 pixels"):
        build(study(tensors, image_size=16), 5, seed=1, weights_dir=tmp_path)


def test_a_hub_out_of_reach_says_what_to_do(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained, **settings):
        if pretrained:
            raise OSError("no route to host")
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        SiteDataError, match=r"could not be fetched \(OSError: no route to host\).*kind: file"
    ):
        build(ClassifierConfig(encoder="test_convnext", weights=HubWeights()), 5, seed=1, weights_dir=None)


def test_only_a_study_that_says_so_asks_the_hub(monkeypatch, tmp_path, tensors, study):
    asked = []
    create = timm.create_model

    def watched(name, pretrained, **settings):
        asked.append(pretrained)
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", watched)
    build(ClassifierConfig(encoder="test_convnext"), 5, seed=1, weights_dir=None)
    build(study(tensors), 5, seed=1, weights_dir=tmp_path)
    assert not any(asked)
    report = build_module.build(
        ClassifierConfig(encoder="test_convnext", weights=HubWeights()), 5, seed=1, weights_dir=None
    ).report
    assert asked[-1]
    assert (report.reshaped_head, report.missing) == (True, HEAD)  # timm's file has 1000 classes
