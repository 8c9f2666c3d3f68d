"""Heat maps: which part of an image speaks for the class that was predicted.

Networks that end in a map get Grad-CAM on it (Selvaraju et al. 2017, arXiv:1610.02391). Networks of tokens, and those
whose maps have the channels last, get gradient times activation, summed over the channels: of a vision transformer at
the last block's first norm, because the tokens behind that block no longer reach the class token. captum computes both.
A heat map tells where the network looked, not that it was right to.

B images, T tokens, F channels, H rows or columns of a map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, log_softmax

from client.data.decoding import decode
from client.heads.features import with_logits
from client.model.clip import Clip
from client.predict.image_classifier import ImageClassifier, LocalHead, Squares
from client.predict.portable import PortableHead
from common.errors import ConfigError
from common.heads import FittedHead

Heat = npt.NDArray[np.float32]
"""(S, S) in [0, 1], of the part of the square that the network sees."""


@dataclass(frozen=True)
class Explainer:
    """A network with the place in it that heat maps are read from."""

    forward: nn.Module
    layer: nn.Module
    is_map: bool
    """The layer gives maps (B, F, H, H); else tokens (B, T, F) or maps with the channels last."""
    classifier: ImageClassifier

    def heat(self, squares: Sequence[decode.Pixels], classes_N: Sequence[int]) -> list[Heat]:
        """A heat map of each square, for the class with this index. All zeros: nothing speaks for the class."""
        from captum.attr import LayerGradCam, LayerGradientXActivation

        images = Squares(squares, self.classifier.preprocessing)
        batch_B3SS = images.batch(torch.arange(len(squares)), None).to(self.classifier.device)
        target_B = torch.tensor(list(classes_N), device=batch_B3SS.device)
        dtype = next(self.forward.parameters()).dtype
        method = (LayerGradCam if self.is_map else LayerGradientXActivation)(self.forward, self.layer)
        found = method.attribute(batch_B3SS.to(dtype).requires_grad_(), target=target_B)
        maps_BHH = found.sum(dim=1) if self.is_map else _grid(found.sum(dim=-1))
        return _scaled(maps_BHH.detach().float().relu(), batch_B3SS.shape[-1])


class _Scores(nn.Module):
    """Normalised images to the scores whose largest is the predicted class."""

    def __init__(self, model: nn.Module, head: PortableHead | None, layer: str | None) -> None:
        super().__init__()
        self.model, self.head, self.layer = model, head, layer

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """(B, C)."""
        if self.head is None:
            logits_BC: Tensor = self.model(images_B3SS)
            return log_softmax(logits_BC.float(), dim=-1)
        features_BF, _ = with_logits(self.model, images_B3SS, self.layer)
        probabilities_BC: Tensor = self.head(features_BF.double())
        return probabilities_BC.clamp_min(1e-12).log()


def explainer(classifier: ImageClassifier) -> Explainer:
    """The classifier with a place to read heat maps from. Raises ConfigError if it has none, or captum is missing."""
    try:
        import captum  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("--explain needs captum; install consilium-fl with the extra `explain`") from error
    match classifier.head:
        case None:
            head = None
        case FittedHead():
            head = PortableHead(classifier.head).to(classifier.device)
        case LocalHead():
            raise ConfigError(
                "--explain: a site's own head is scikit-learn's and has no gradients; name a federated head or softmax"
            )
    layer, is_map = place(classifier.model, classifier.preprocessing.image_size)
    return Explainer(_Scores(classifier.model, head, classifier.layer), layer, is_map, classifier)


def place(model: nn.Module, image_size: int) -> tuple[nn.Module, bool]:
    """The layer that heat maps are read from, and whether it gives maps (B, F, H, H). Raises ConfigError."""
    network = model.image if isinstance(model, Clip) else model
    shapes: list[tuple[nn.Module, tuple[int, ...]]] = []
    hooks = [
        module.register_forward_hook(
            lambda module, _inputs, output: (
                shapes.append((module, tuple(output.shape))) if isinstance(output, Tensor) else None
            )
        )
        for module in network.modules()
    ]
    first = next(network.parameters())
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, image_size, image_size, device=first.device, dtype=first.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    norm = _first_norm_of_last_block(network)
    if norm is not None and any(module is norm and len(shape) == 3 for module, shape in shapes):
        return norm, False
    for module, shape in reversed(shapes):
        match shape:
            case (_, channels, height, width) if height == width > 1 and channels != height:
                return module, True
            case (_, height, width, _) if height == width > 1:
                return module, False
            case _:
                pass
    raise ConfigError(
        "--explain: the network has no layer that keeps places of the image apart, so it has no heat maps"
    )


def _first_norm_of_last_block(network: nn.Module) -> nn.Module | None:
    """timm's and open_clip's vision transformers; None for other networks."""
    for blocks, norm in (("blocks", "norm1"), ("transformer.resblocks", "ln_1"), ("trunk.blocks", "norm1")):
        try:
            found = network.get_submodule(blocks)[-1].get_submodule(norm)  # type: ignore[index]
        except (AttributeError, TypeError, IndexError):
            continue
        return found if isinstance(found, nn.Module) else None
    return None


def _grid(tokens: Tensor) -> Tensor:
    """(B, H, H) of tokens (B, T), without those before the first place of the image; maps stay as they are."""
    if tokens.ndim == 3:
        return tokens
    side = math.isqrt(tokens.shape[1])
    return tokens[:, tokens.shape[1] - side**2 :].reshape(-1, side, side)


def _scaled(maps_BHH: Tensor, size: int) -> list[Heat]:
    stretched = interpolate(maps_BHH[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    most_B = stretched.amax(dim=(1, 2), keepdim=True)
    heats: list[Heat] = list((stretched / most_B.clamp_min(1e-12)).cpu().numpy().astype(np.float32))
    return heats
