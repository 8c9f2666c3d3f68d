"""Any encoder becomes the image side of a CLIP; what CLIP's own towers say, they say here too."""

import hashlib
import logging
import math
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from client.heads.features import features
from client.model import encoders, text
from client.model.build import build
from client.model.clip import LARGEST_LOG_SCALE, ClipHead
from client.model.encoders import PAPER_ENCODERS
from client.model.parameters import partition
from client.training import losses
from client.training.fit import StudyPosition, fit
from common.config import (
    ClassVectors,
    ClipConfig,
    FileWeights,
    HuggingFaceText,
    LastBlocks,
    LocalConfig,
    OpenClipText,
    RandomText,
    SeedWeights,
    prompts,
)
from common.errors import ConfigError, SiteDataError

ASKED = prompts.fill(("a picture of a {class}", "{class}, close"), ("mel", "nv", "df"), {"mel": "melanoma"})


def clip(encoder="test_convnext", **settings):
    return ClipConfig(**{"encoder": encoder, "image_size": 32, "text": RandomText(width=16)} | settings)


def images_of(size=32, number=2):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


# --- any encoder ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("encoder", PAPER_ENCODERS)
def test_every_encoder_of_the_paper_becomes_a_clip(encoder, monkeypatch):
    monkeypatch.setattr(
        "client.model.build.architecture", partial(encoders.architecture, device="meta")
    )  # shapes without memory
    monkeypatch.setattr("client.model.encoders._takes", lambda *_: True)  # sizes have a test of their own
    config = ClipConfig(encoder=encoder, text=RandomText(width=512))
    with torch.device("meta"):
        built = build(config, 7, seed=1, weights_dir=None)
        size = built.preprocessing.image_size
        features_BF = features(built.model.eval(), torch.empty(1, 3, size, size))
        assert built.model.head.projection(features_BF).shape == (1, 512)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "size"),
    [("test_convnext", 32), ("swin_t", 32), ("swin_v2_t", 32), ("maxvit_t", 32), ("test_vit", 32)],
)
def test_one_of_each_family_takes_a_step_under_each_loss(encoder, size, generate_images):
    built = build(clip(encoder, image_size=size), 3, seed=1, weights_dir=None)
    config = clip(encoder, image_size=size)
    parts = partition(built.model, config)
    for kind in ("class", "contrastive", "supervised_contrastive"):
        before = built.model.head.projection.weight.clone()
        local = LocalConfig(steps=1, batch_size=4, augmentation="none", channels_last=False)
        fitted = fit(
            built.model,
            generate_images(6, size=size),
            local,
            parts=parts,
            progress=StudyPosition(1, 1),
            penalty=None,
            device=torch.device("cpu"),
            seed=1,
            num_classes=3,
            loss=losses.of_study(clip(loss=kind), local, (2, 2, 2)),
        )
        assert math.isfinite(fitted.mean_loss)
        assert not torch.equal(built.model.head.projection.weight, before)


def test_a_clip_with_frozen_classes_is_a_linear_classifier_with_normalised_weights():
    """`class` loss and its gradients, against the formula written out with plain tensors."""
    draws = torch.Generator().manual_seed(1)
    features_BF, labels_B = torch.randn(4, 5, generator=draws), torch.tensor([0, 2, 1, 2])
    classes_CW = normalize(torch.randn(3, 6, generator=draws), dim=1)
    head = ClipHead(nn.Linear(5, 6), classes_CW, temperature=0.07)
    losses.by_class()(head(features_BF), labels_B, torch.ones(3)).backward()

    weight_WF = head.projection.weight.detach().clone().requires_grad_()
    bias_W = head.projection.bias.detach().clone().requires_grad_()
    scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
    projected_BW = features_BF @ weight_WF.T + bias_W
    cosines_BC = projected_BW @ classes_CW.T / projected_BW.norm(dim=1, keepdim=True)
    cross_entropy(cosines_BC * scale.exp(), labels_B, reduction="sum").backward()
    for found, expected in (
        (head.projection.weight, weight_WF),
        (head.projection.bias, bias_W),
        (head.logit_scale, scale),
    ):
        assert torch.allclose(found.grad, expected.grad, rtol=1e-4, atol=1e-6)
    assert "class_vectors_CW" not in dict(head.named_parameters())


def test_the_temperature_starts_as_asked_and_never_falls_below_a_hundredth():
    head = ClipHead(nn.Identity(), torch.eye(2), temperature=0.07)
    assert head.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        head.logit_scale.fill_(10)
    assert head.eval()(torch.eye(2)).max().item() == pytest.approx(100)
    head.train()(torch.eye(2))
    assert head.logit_scale.item() == pytest.approx(LARGEST_LOG_SCALE)


def test_cosines_are_not_rounded_to_the_eight_bits_of_the_forward_pass():
    head = ClipHead(nn.Identity(), normalize(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), dim=1), temperature=0.01)
    images_BF = torch.tensor([[1.0, 1.0]])
    plain = head(images_BF)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = head(images_BF)
    assert plain[0, 0].item() == pytest.approx(100 * 7 / 5 / math.sqrt(2), rel=1e-5)  # 98.99, in bf16 99
    assert torch.equal(rounded, plain)


def test_class_vectors_are_frozen_and_the_head_travels():
    config = clip(trainable="head")
    model = build(config, 3, seed=1, weights_dir=None).model
    parts = partition(model, config)
    assert parts.shared == ("head.logit_scale", "head.projection.weight", "head.projection.bias")
    assert "head.class_vectors_CW" in parts.frozen


def test_the_last_blocks_of_a_clip_are_those_of_its_encoder():
    config = clip(trainable=LastBlocks(last_blocks=1))
    model = build(config, 3, seed=1, weights_dir=None).model
    shared = partition(model, config).shared
    below = {name.split(".")[1] for name in shared if name.startswith("image.")}
    assert below == {"stages", "head"}  # the norm before the head is timm's to train with it
    assert {name for name in shared if name.startswith("head.")} > {"head.projection.weight"}


def test_random_class_vectors_come_from_the_seed_and_have_length_one():
    one, again, other = (
        build(clip(), 3, seed=seed, weights_dir=None).model.head.class_vectors_CW for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.allclose(one.norm(dim=1), torch.ones(3))


# --- CLIP's own towers ---------------------------------------------------------------------------


def test_clips_own_image_tower_gives_the_features_of_encode_image(tiny_clip, tiny_weights):
    whole, folder, weights = tiny_weights
    config = clip(tiny_clip, library="open_clip", weights=weights)
    built = build(config, 3, seed=1, weights_dir=folder)
    with torch.no_grad():
        assert torch.equal(features(built.model.eval(), images_of()), whole.encode_image(images_of()))
    assert built.preprocessing.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert (built.preprocessing.interpolation, built.preprocessing.crop_share) == ("bicubic", 1)
    assert not any("text" in name for name in built.model.state_dict())


@pytest.mark.parametrize(("name", "width"), [("RN50", 1024), ("ViT-B-32", 512), ("ViT-B-16", 512)])
def test_the_papers_own_clip_encoders_build_without_their_text_towers(name, width):
    config = ClipConfig(encoder=name, library="open_clip", text=RandomText(width=width))
    with torch.device("meta"):
        built = build(config, 7, seed=1, weights_dir=None)
        assert features(built.model.eval(), torch.empty(1, 3, 224, 224)).shape == (1, width)
    assert built.preprocessing.image_size == 224


def test_prompt_vectors_are_open_clips_own(tiny_clip, tiny_weights):
    import open_clip

    whole, folder, weights = tiny_weights
    vectors_CW = text.embed(OpenClipText(architecture=tiny_clip, weights=weights), ASKED, folder)
    tokens = open_clip.get_tokenizer(tiny_clip)([prompt for of_class in ASKED for prompt in of_class])
    with torch.no_grad():
        each_PW = whole.encode_text(tokens, normalize=True)
    expected_CW = normalize((each_PW[0::2] + each_PW[1::2]) / 2, dim=1)
    assert torch.allclose(torch.from_numpy(vectors_CW), expected_CW, atol=1e-6)


def test_prompt_vectors_of_a_hugging_face_model_are_open_clips_own(minilm):
    """The real all-MiniLM-L6-v2, as open_clip's CustomTextCLIP reads it."""
    import open_clip

    folder, weights = minilm
    place = str(folder / weights.name)
    vectors_CW = text.embed(HuggingFaceText(weights=weights), ASKED, folder)
    whole = open_clip.CustomTextCLIP(
        384,
        {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        {
            "hf_model_name": place,
            "hf_tokenizer_name": place,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": None,  # else open_clip puts a random layer behind it
        },
    ).eval()
    tokens = open_clip.tokenizer.HFTokenizer(place)([prompt for of_class in ASKED for prompt in of_class])
    with torch.no_grad():
        each_PW = whole.encode_text(tokens, normalize=True)
    expected_CW = normalize((each_PW[0::2] + each_PW[1::2]) / 2, dim=1)
    assert torch.allclose(torch.from_numpy(vectors_CW), expected_CW, atol=1e-5)
    # A melanoma is called so, a nevus only "nv": the tower knows one of the words.
    assert vectors_CW.shape == (3, 384)


def test_embedded_vectors_travel_in_the_study_and_no_tower_is_built(tiny_clip, tiny_weights):
    _, folder, weights = tiny_weights
    tower = OpenClipText(architecture=tiny_clip, weights=weights)
    vectors_CW = text.embed(tower, ASKED, folder)
    packed = ClassVectors(asked="0" * 64, float32=prompts.pack(vectors_CW))
    model = build(clip(text=tower, vectors=packed), 3, seed=1, weights_dir=None).model  # no folder, no tower
    assert torch.equal(model.head.class_vectors_CW, torch.from_numpy(vectors_CW))


def test_a_trained_text_tower_travels_like_any_other_weights(tiny_clip):
    tower = OpenClipText(architecture=tiny_clip, weights=SeedWeights(), trainable=True)
    config = clip(text=tower, trainable="head")
    model = build(config, 3, seed=1, weights_dir=None, class_prompts=ASKED).model
    shared = partition(model, config).shared
    assert "head.text.tower.token_embedding.weight" in shared
    by_class = losses.by_class()(model(images_of()), torch.tensor([0, 1]), torch.ones(3))
    by_class.backward()
    assert model.head.text.tower.text_projection.grad.abs().sum() > 0


def test_a_long_prompt_is_cut_with_a_warning(tiny_clip, tiny_weights, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    _, folder, weights = tiny_weights
    tower = OpenClipText(architecture=tiny_clip, weights=weights)
    longer = (("a " * 20 + "melanoma",), ("a mole",))
    with caplog.at_level("WARNING", logger="consilium"):
        assert text.embed(tower, longer, folder).shape == (2, 16)
    assert "a prompt of 23 tokens is cut at the 12" in caplog.text  # 20 + melanoma, start and end


# --- bad input -----------------------------------------------------------------------------------


def test_a_text_tower_of_another_width_is_refused(tiny_clip):
    config = clip(tiny_clip, library="open_clip", text=RandomText(width=384))
    with pytest.raises(ConfigError, match=r"gives 384 numbers a class, but .* own projection to 16"):
        build(config, 3, seed=1, weights_dir=None)


def test_an_unknown_name_of_open_clip_suggests_near_ones():
    with pytest.raises(ConfigError, match=r"no model 'ViT-B-23'; did you mean .*ViT-B-32"):
        build(clip("ViT-B-23", library="open_clip"), 3, seed=1, weights_dir=None)


def test_a_study_whose_tower_was_not_asked_says_how_to(tiny_clip):
    tower = OpenClipText(architecture=tiny_clip, weights=SeedWeights())
    with pytest.raises(ConfigError, match="embed-prompts"):
        build(clip(text=tower), 3, seed=1, weights_dir=None)


def test_a_tower_that_only_a_hub_has_is_not_looked_up():
    tower = OpenClipText(architecture="roberta-ViT-B-32", weights=SeedWeights())
    with pytest.raises(ConfigError, match="Hugging Face's hub"):
        text.embed(tower, ASKED, None)


def test_a_file_of_another_clip_is_refused(tiny_clip, tmp_path):
    save_file({"visual.conv9.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    sha256 = hashlib.sha256((tmp_path / "other.safetensors").read_bytes()).hexdigest()
    weights = FileWeights(name="other.safetensors", sha256=sha256)
    with pytest.raises(SiteDataError, match=r"lacks \d+ tensors of tiny-test-clip's visual side"):
        build(clip(tiny_clip, library="open_clip", weights=weights), 3, 1, tmp_path)


def test_a_folder_without_a_text_model_says_what_belongs_there(tmp_path):
    weights = FileWeights(name="minilm", sha256="0" * 64)
    with pytest.raises(SiteDataError, match=r"model.safetensors cannot be read"):
        text.embed(HuggingFaceText(weights=weights), ASKED, tmp_path)
