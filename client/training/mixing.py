"""Styles of the images of a batch, mixed, so that the network leans less on the look of its site's camera.

`mixstyle` mixes channel statistics of early features (MixStyle, Zhou et al. 2021, arXiv:2104.02008),
`amplitude_mix` the amplitudes of the images' Fourier spectra (Xu et al. 2021, arXiv:2105.11120, eq. 5).
Both take partners from the site's own batch, and nothing of it travels. They see one micro-batch at a time.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ConfigError

_REDUCTIONS = (4, 8)
"""How many times smaller than the image the features are whose styles are mixed; ResNet's first two stages."""
_ALPHA = 0.1
"""Of the beta distribution of the share that an image keeps: nearly all, or nearly nothing."""
_EPS = 1e-6


def places(model: nn.Module) -> list[nn.Module]:
    """The layers after which styles are mixed. Raises ConfigError for an encoder that is no CNN."""
    encoder = next((part for part in model.modules() if hasattr(part, "feature_info")), None)
    if encoder is not None and getattr(encoder, "output_fmt", "NCHW") == "NCHW":
        known: Any = encoder.feature_info
        stages = [stage for stage in known if stage["reduction"] in _REDUCTIONS]
        if stages:
            return [encoder.get_submodule(stage["module"]) for stage in stages]
    raise ConfigError(
        "local.mixstyle is for CNNs with features of a quarter and an eighth of the image's size, and this encoder "
        "has none; set it to 0, or take another encoder such as resnet18 or convnext_t."
    )


@contextmanager
def mixstyle(model: nn.Module, probability: float) -> Iterator[None]:
    """While it is entered, a batch's styles are mixed after each place with this probability."""

    def mix(_layer: nn.Module, _inputs: tuple[Tensor, ...], features_BCHW: Tensor) -> Tensor:
        num_images, device = len(features_BCHW), features_BCHW.device
        kept_B = torch.distributions.Beta(_ALPHA, _ALPHA).sample((num_images,)).to(device)
        is_mixed = torch.rand((), device=device) < probability
        partner_B = torch.randperm(num_images, device=device)
        return mixed_styles(features_BCHW, partner_B, torch.where(is_mixed, kept_B, torch.ones_like(kept_B)))

    with ExitStack() as hooks:
        for place in places(model) if probability > 0 else ():
            hooks.callback(place.register_forward_hook(mix).remove)
        yield


def mixed_styles(features_BCHW: Tensor, partner_B: Tensor, kept_B: Tensor) -> Tensor:
    """Features whose mean and deviation by channel are `kept_B` times their own, the rest their partner's."""
    wide_BCHW = features_BCHW.float() if features_BCHW.dtype != torch.float64 else features_BCHW
    mean_BC11 = wide_BCHW.mean(dim=(2, 3), keepdim=True).detach()
    std_BC11 = (wide_BCHW.var(dim=(2, 3), correction=0, keepdim=True) + _EPS).sqrt().detach()
    kept_B111 = kept_B.to(wide_BCHW.dtype).view(-1, 1, 1, 1)
    new_mean_BC11 = kept_B111 * mean_BC11 + (1 - kept_B111) * mean_BC11[partner_B]
    new_std_BC11 = kept_B111 * std_BC11 + (1 - kept_B111) * std_BC11[partner_B]
    mixed_BCHW = (wide_BCHW - mean_BC11) / std_BC11 * new_std_BC11 + new_mean_BC11
    return mixed_BCHW.to(features_BCHW.dtype)


def amplitude_mix(images_BCHW: Tensor, probability: float) -> Tensor:
    """With this probability for each image, a share of its amplitudes, even from 0 to 1, is another image's."""
    num_images, device = len(images_BCHW), images_BCHW.device
    share_B = torch.rand(num_images, device=device)
    is_mixed_B = torch.rand(num_images, device=device) < probability
    partner_B = torch.randperm(num_images, device=device)
    return mixed_amplitudes(images_BCHW, partner_B, share_B * is_mixed_B)


def mixed_amplitudes(images_BCHW: Tensor, partner_B: Tensor, share_B: Tensor) -> Tensor:
    """Images with their own phases, and amplitudes of which `share_B` are their partner's."""
    spectra_BCHW = torch.fft.rfft2(images_BCHW)
    amplitudes_BCHW = spectra_BCHW.abs()
    share_B111 = share_B.to(amplitudes_BCHW.dtype).view(-1, 1, 1, 1)
    mixed_BCHW = (1 - share_B111) * amplitudes_BCHW + share_B111 * amplitudes_BCHW[partner_B]
    done_BCHW: Tensor = torch.fft.irfft2(
        torch.polar(mixed_BCHW, spectra_BCHW.angle()), s=images_BCHW.shape[-2:]
    )
    return done_BCHW
