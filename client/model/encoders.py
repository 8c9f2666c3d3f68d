"""Encoders by name, with the preprocessing that each needs.

The paper (arXiv:2505.23040) names its encoders as torchvision does; here they come from timm, which
carries preprocessing, licence and origin with every weight. Any other timm name works as well.
Names are looked up in timm's own registry only, so no name can make a connection to a hub.
"""

import difflib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

import timm
import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, is_model, split_model_name_tag
from torch import nn

from client.images import Preprocessing
from common.config import ImageSide
from common.errors import ConfigError

PAPER_ENCODERS: Mapping[str, str] = MappingProxyType(
    {
        "convnext_t": "convnext_tiny",
        "convnext_s": "convnext_small",
        "convnext_b": "convnext_base",
        "convnext_l": "convnext_large",
        "swin_t": "swin_tiny_patch4_window7_224",
        "swin_s": "swin_small_patch4_window7_224",
        "swin_b": "swin_base_patch4_window7_224",
        "swin_v2_t": "swinv2_tiny_window8_256",
        "swin_v2_s": "swinv2_small_window8_256",
        "swin_v2_b": "swinv2_base_window8_256",
        "maxvit_t": "maxvit_tiny_tf_224",
        "vit_l_16": "vit_large_patch16_224",
    }
)

Interpolation = Literal["nearest", "bilinear", "bicubic"]

# Sizes that are offered when an encoder cannot take the one that was asked for.
_USUAL_SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)


def timm_name(encoder: str) -> str:
    """timm's name for `encoder`, which is a name of the paper or timm's own. Raises ConfigError."""
    name = PAPER_ENCODERS.get(encoder, encoder)
    architecture, tag = split_model_name_tag(name)
    if not is_model(architecture):
        close = difflib.get_close_matches(encoder, [*PAPER_ENCODERS, *timm.list_models()], n=3)
        hint = (
            f"did you mean {', '.join(close)}?" if close else f"the paper's are {', '.join(PAPER_ENCODERS)}."
        )
        raise ConfigError(f"model.encoder: timm {timm.__version__} has no encoder {encoder!r}; {hint}")
    if tag and name not in get_arch_pretrained_cfgs(architecture):
        known = ", ".join(sorted(get_arch_pretrained_cfgs(architecture)))
        raise ConfigError(
            f"model.encoder: timm {timm.__version__} has no weights {tag!r} of {architecture}; use {known}."
        )
    return str(name)


def preprocessing(config: ImageSide) -> Preprocessing:
    """How images become this encoder's input: timm's figures, and the paper's crop from 256/224.

    timm's own crop share is left out: it serves the test of one set of ImageNet weights, and would
    give each encoder another view of the same lesion.
    """
    encoder = _pretrained_cfg(config)
    return Preprocessing(
        image_size=_image_size(config),
        mean=encoder.mean,
        std=encoder.std,
        interpolation=_interpolation(encoder.interpolation),
    )


def architecture(
    config: ImageSide, num_classes: int, device: Literal["cpu", "meta"] = "cpu", *, pretrained: bool = False
) -> nn.Module:
    """The encoder with a linear head over `num_classes`, drawn from torch's generator as it stands.

    `device="meta"` gives shapes without memory. `pretrained` takes timm's hub weights.
    Raises ConfigError if the encoder cannot take the study's image size.
    """
    name, size = timm_name(config.encoder), _image_size(config)
    if not _takes(name, size):
        able = [usual for usual in _USUAL_SIZES if _takes(name, usual)]
        sizes = ", ".join(map(str, able)) if able else "none of the usual sizes"
        raise ConfigError(
            f"model.image_size: {config.encoder} cannot take {size} pixels a side; it can take {sizes}."
        )
    return _create(name, num_classes, size, device, pretrained)


def _image_size(config: ImageSide) -> int:
    return config.image_size or int(_pretrained_cfg(config).input_size[-1])


def _pretrained_cfg(config: ImageSide) -> Any:
    name = timm_name(config.encoder)
    return get_pretrained_cfg(name) or timm.models.PretrainedCfg()


def _interpolation(name: str) -> Interpolation:
    match name:
        case "nearest" | "bilinear" | "bicubic":
            return name
        case _:  # "random" of some training recipes, "lanczos" of PIL
            return "bicubic"


@cache
def _takes(name: str, size: int) -> bool:
    """Whether two images of this size pass through, tried on shapes alone."""
    try:
        model = _create(name, 2, size, "meta", pretrained=False).eval()
        with torch.inference_mode():
            model(torch.empty(2, 3, size, size, device="meta"))
    except Exception:  # timm's encoders refuse a size in many ways, even by dividing by zero
        return False
    return True


def _create(name: str, num_classes: int, size: int, device: str, pretrained: bool) -> nn.Module:
    cfg = get_pretrained_cfg(name)
    # Only encoders with a grid of windows or positions are built for one size.
    fixed: dict[str, Any] = {"img_size": size} if cfg is not None and cfg.fixed_input_size else {}
    with torch.device(device):
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **fixed)
    return model
