"""Parameter-efficient tuning: small new layers, put into a model that is already built.

The new layers are trained and travel; the rest stays frozen and only its hash is compared. Linear
probe and BitFit add nothing: they are a choice of names, see parameters.py. LoRA is peft's.
"""

import re
from collections import OrderedDict
from copy import deepcopy
from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from client.model.clip import Clip
from common.config import BitFit, Bottleneck, ImageSide, LinearProbe, Lora
from common.errors import ConfigError


class Adapter(nn.Module):
    """ratio * relu(W2 relu(W1 f)) + (1 - ratio) * f (CLIP-Adapter, Gao et al. 2021, arXiv:2110.04544)."""

    def __init__(self, num_features: int, config: Bottleneck) -> None:
        super().__init__()
        self.down = nn.Linear(num_features, max(1, num_features // config.reduction))
        self.up = nn.Linear(self.down.out_features, num_features)
        self.ratio = config.ratio

    def forward(self, features_BF: Tensor) -> Tensor:
        """Features of the same length."""
        return self.ratio * relu(self.up(relu(self.down(features_BF)))) + (1 - self.ratio) * features_BF


def install(model: nn.Module, config: ImageSide, image_size: int) -> None:
    """Add the layers of the study's tuning, for images of `image_size` pixels a side.

    Raises ConfigError if the encoder has no place for it.
    """
    match config.tuning:
        case None | LinearProbe() | BitFit():
            return
        case Lora() as lora:
            _install_lora(model, lora, config.encoder, image_size)
        case Bottleneck() as bottleneck:
            _install_adapter(model, bottleneck, config.encoder)
        case _:
            assert_never(config.tuning)


# --- adapter -------------------------------------------------------------------------------------


def _install_adapter(model: nn.Module, config: Bottleneck, encoder: str) -> None:
    """Before the last linear layer of a classifier, or before a CLIP's projection."""
    last = model.head.projection if isinstance(model, Clip) else model.get_classifier()  # type: ignore[operator]
    match last:
        case nn.Linear():
            num_features = last.in_features
        case nn.Identity() if isinstance(model, Clip):
            num_features = model.width
        case _:
            raise ConfigError(
                f"model.tuning: {encoder} ends in {type(last).__name__}, an adapter needs one linear layer there; "
                "use lora, bitfit or linear_probe."
            )
    whole = nn.Sequential(OrderedDict(adapter=Adapter(num_features, config), linear=last))
    model.set_submodule(next(path for path, module in model.named_modules() if module is last), whole)


# --- LoRA ----------------------------------------------------------------------------------------


def _install_lora(model: nn.Module, config: Lora, encoder: str, image_size: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    image = model.image if isinstance(model, Clip) else model
    called = _called(image, image_size)
    targets = sorted(_targets(image, config.layers) & called)
    if not targets:
        choices: tuple[Literal["attention", "linear", "all"], ...] = ("attention", "linear", "all")
        has = [layers for layers in choices if _targets(image, layers) & called]
        raise ConfigError(
            f"model.tuning.layers={config.layers}: {encoder} has no such layers below its head; "
            + (f"it has layers for {' and '.join(has)}." if has else "use bitfit, adapter or linear_probe.")
        )
    inject_adapter_in_model(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number, as the formula says
            lora_dropout=config.dropout,
            # One expression that fits whole paths only: a list would also fit their ends.
            target_modules="|".join(map(re.escape, targets)),
        ),
        image,
    )


def _targets(encoder: nn.Module, layers: Literal["attention", "linear", "all"]) -> set[str]:
    """Paths of the layers below the head that may get a product beside them."""
    head = encoder.get_classifier() if hasattr(encoder, "get_classifier") else nn.Identity()  # type: ignore[operator]
    of_head = {id(module) for module in head.modules()}
    targets = set()
    for path, module in encoder.named_modules():
        match module:
            case nn.MultiheadAttention():  # open_clip's; peft knows it as a whole
                wanted = True
            case nn.Linear():
                wanted = layers != "attention" or "attn" in path.split(".")
            case nn.Conv2d():
                wanted = layers == "all" and module.groups == 1
            case _:
                wanted = False
        if wanted and id(module) not in of_head:
            targets.add(path)
    return targets


def _called(encoder: nn.Module, image_size: int) -> set[str]:
    """Paths of the modules that an image passes through.

    Some layers only lend their weights: swin v2's qkv, and what is inside of torch's MultiheadAttention. A product
    beside such a layer would be trained, sent and never used.
    """
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, path=path: called.add(path))
        for path, module in encoder.named_modules()
    ]
    was_training = encoder.training
    device = next(encoder.parameters()).device
    with torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    encoder.train(was_training)
    for hook in hooks:
        hook.remove()
    return called


def merged(model: nn.Module) -> nn.Module:
    """A copy in which every product is added to the layer beside it: the encoder's own layers and names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = deepcopy(model)
    with torch.no_grad():
        while product := next(
            ((path, layer) for path, layer in plain.named_modules() if isinstance(layer, BaseTunerLayer)),
            None,
        ):
            path, layer = product
            if hasattr(layer, "unload_and_optionally_merge_module"):
                whole = layer.unload_and_optionally_merge_module(
                    merge=True, safe_merge=False, adapter_names=None
                )
            else:
                layer.merge()
                whole = layer.get_base_layer()
            plain.set_submodule(path, whole)
    return plain
