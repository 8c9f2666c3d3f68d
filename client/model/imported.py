"""Weights files of other libraries as safetensors with the names that a study loads.

Files of pickles are read without running what is in them. Names of timm and of open_clip stay. A file of torchvision
has other names: its tensors are put in timm's order, and the result is kept only if timm's network then gives what
torchvision's gives.
"""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from client.model.encoders import PAPER_ENCODERS, architecture, timm_name
from common.config import ClassifierConfig
from common.errors import SiteDataError
from common.files import write_atomically
from common.settings import to_yaml

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_PREFIX = "module."
_AHEAD = 4
"""Tensors that a library may have in another order within a layer."""
_TOLERANCE = 1e-3
_TORCHVISION = {"swin_v2_t": None, "swin_v2_s": None, "swin_v2_b": None, "maxvit_t": None} | {
    "convnext_t": "convnext_tiny",
    "convnext_s": "convnext_small",
    "convnext_b": "convnext_base",
    "convnext_l": "convnext_large",
    "swin_t": "swin_t",
    "swin_s": "swin_s",
    "swin_b": "swin_b",
    "vit_l_16": "vit_l_16",
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
}
"""torchvision's name by the paper's; None where timm builds the network from other tensors."""


@dataclass(frozen=True)
class Imported:
    """A file that a study can name."""

    path: Path
    encoder: str
    sha256: str
    how: str
    """What was done to the file."""

    def describe(self) -> str:
        """For a terminal: what was done, and what to write into a study."""
        weights = {"kind": "file", "name": self.path.name, "sha256": self.sha256}
        stanza = to_yaml({"model": {"encoder": self.encoder, "weights": weights}}).decode()
        return f"{self.path}: {self.how}\n\n{stanza}"


def convert(file: Path, encoder: str, out: Path) -> Imported:
    """Write the weights in `file` to `out` for studies with `encoder`. Raises ConfigError, SiteDataError, StorageError.

    For a CLIP of open_clip, `encoder` is its name there, and the whole model's file is needed.
    """
    source = _read(file)
    if any(name.startswith("visual.") for name in source):
        found, how = source, "names of open_clip, kept"
    else:
        found, how = _for_timm(source, file, encoder)
    whole = {name: tensor.contiguous() for name, tensor in found.items()}
    content = save(whole, {"format": "pt", "encoder": encoder, "source": file.name})
    write_atomically(out, content)
    return Imported(out, encoder, hashlib.sha256(content).hexdigest(), how)


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors in a file of safetensors or of pickles. Raises SiteDataError."""
    if not file.is_file():
        raise SiteDataError(f"there is no file {file}; give the file of weights")
    try:
        content: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise SiteDataError(
            f"{file} holds more than tensors, which is not read because it could run anything "
            f"({' '.join(str(error).split())[:200]}); ask its authors for a file of the weights alone"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise SiteDataError(
            f"{file} cannot be read as weights ({' '.join(str(error).split())[:200]})"
        ) from error
    while isinstance(content, Mapping) and (inner := next((k for k in _WRAPPERS if k in content), None)):
        content = content[inner]
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise SiteDataError(f"{file} holds no named tensors, expected the weights of a network; give another")
    shared = all(name.startswith(_PREFIX) for name in tensors)
    return {name.removeprefix(_PREFIX) if shared else name: value.clone() for name, value in tensors.items()}


def _for_timm(source: dict[str, Tensor], file: Path, encoder: str) -> tuple[dict[str, Tensor], str]:
    network = architecture(ClassifierConfig(encoder=encoder), _num_classes(source))
    known = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    if known.keys() <= source.keys() and all(source[name].shape == known[name].shape for name in known):
        return {name: value for name, value in source.items() if name in known}, "names of timm, kept"
    theirs = _TORCHVISION.get(encoder, timm_name(encoder).partition(".")[0])
    if theirs is None:
        raise SiteDataError(
            f"{file}: torchvision builds {encoder} from other tensors than timm, so its file cannot be taken over; "
            f"`consilium-site fetch-weights {encoder}` has timm's"
        )
    other = _torchvision(theirs, source)
    if other is None:
        lacking = [name for name in known if name not in source]
        raise SiteDataError(
            f"{file} holds the weights of another model than {encoder}: {len(lacking)} of {len(known)} tensors are "
            f"missing ({', '.join(lacking[:3])}), and it is no file of torchvision's {theirs}; name the encoder "
            f"that it was made with. The paper's are {', '.join(PAPER_ENCODERS)}"
        )
    ordered = _in_order(
        {name: value for name, value in other.state_dict().items() if value.is_floating_point()}, known
    )
    if ordered is not None:
        network.load_state_dict(ordered, strict=False)
    if ordered is None or (gap := _gap(network, other)) > _TOLERANCE:
        raise SiteDataError(
            f"{file} is of torchvision's {theirs}, and timm's {encoder} does not give the same with its tensors, so "
            f"the file is not taken over; `consilium-site fetch-weights {encoder}` has timm's"
        )
    return ordered, f"torchvision's {theirs} under timm's names, outputs equal to {gap:.0e}"


def _num_classes(source: Mapping[str, Tensor]) -> int:
    """Rows of the last matrix, which is the classifier's."""
    matrices = [tensor for tensor in source.values() if tensor.ndim == 2]
    return int(matrices[-1].shape[0]) if matrices else 1000


def _torchvision(name: str, source: Mapping[str, Tensor]) -> nn.Module | None:
    """torchvision's network with these weights; None if it has none of the name, or they are others."""
    from torchvision import models

    if name not in models.list_models():
        return None
    network: nn.Module = models.get_model(name, weights=None, num_classes=_num_classes(source))
    try:
        network.load_state_dict(dict(source))
    except RuntimeError:
        return None
    return network


def _in_order(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """`source` under the names of `target`: each takes the first of the next tensors of its shape; None if one lacks.

    A scale of shape (C, 1, 1) counts as one of shape (C).
    """
    waiting = list(source.values())
    found = {}
    for name, tensor in target.items():
        place = next(
            (
                place
                for place, value in enumerate(waiting[:_AHEAD])
                if value.squeeze().shape == tensor.squeeze().shape
            ),
            None,
        )
        if place is None:
            return None
        found[name] = waiting.pop(place).reshape(tensor.shape)
    return None if waiting else found


def _gap(first: nn.Module, second: nn.Module) -> float:
    """Largest difference of two networks' outputs on two images of noise, relative to the largest output."""
    noise = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, other = first.eval()(noise), second.eval()(noise)
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))
