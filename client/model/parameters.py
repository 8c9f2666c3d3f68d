"""Roles of a model's tensors: which are shared, which stay local, and which are frozen.

Every float tensor has exactly one role: `shared` ones are trained and travel, `local` ones are
trained and stay (normalisation at each site, FedBN, arXiv:2102.07623, or its statistics alone, SiloBN,
arXiv:2008.07424), `frozen` ones are the same everywhere, and only their hash is compared. Under
parameter-efficient tuning most of the encoder is frozen, running means and variances included. Integer
buffers are in none: they count batches, mean nothing to another site, and come back from Flower as floats.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from client.model.clip import Clip
from client.model.encoders import architecture
from common.config import BitFit, Bottleneck, ClipConfig, ImageSide, LastBlocks, LinearProbe, Lora
from common.errors import ConfigError, WireError
from common.weights import Array, Arrays, TensorSpec, digest


@dataclass(frozen=True)
class TensorNames:
    """Names of a model's `state_dict` by role, each in its order."""

    shared: tuple[str, ...]
    local: tuple[str, ...]
    frozen: tuple[str, ...]

    @property
    def trained(self) -> frozenset[str]:
        """Names that change at this site."""
        return frozenset(self.shared + self.local)


# --- deciding ------------------------------------------------------------------------------------


def partition(model: nn.Module, config: ImageSide) -> TensorNames:
    """Sort the tensors of `model` as the study says. Raises ConfigError."""
    trained = _trained_parameters(model, config)
    norms = _normalisation(model)
    moving = {
        name
        for names in norms
        for name in names
        if _statistics_move(config) and (config.trainable == "all" or not trained.isdisjoint(names))
    }
    stays = {name for name in moving if _stays(name, config)}
    names = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    return TensorNames(
        shared=tuple(n for n in names if n in trained | moving and n not in stays),
        local=tuple(n for n in names if n in stays),
        frozen=tuple(n for n in names if n not in trained | moving),
    )


def _stays(name: str, config: ImageSide) -> bool:
    """Whether this tensor of batch normalisation is kept at the site."""
    is_statistic = name.rpartition(".")[2].startswith("running_")
    return config.batch_norm == "local" or (config.batch_norm == "local_statistics" and is_statistic)


def _statistics_move(config: ImageSide) -> bool:
    return config.tuning is None and config.batch_norm != "frozen"


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Parameters of timm's classifier, in the order of the model."""
    head = model.get_classifier()  # type: ignore[operator]
    heads = head if isinstance(head, tuple) else (head,)  # distilled models have two
    inside = {id(parameter) for module in heads for parameter in module.parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in inside)


def _trained_parameters(model: nn.Module, config: ImageSide) -> frozenset[str]:
    head = frozenset(head_names(model))
    match config.tuning:
        case None:
            return _trainable(model, config)
        case LinearProbe() | Bottleneck():  # the adapter is a part of the head
            return head
        case BitFit():
            return head | {name for name, _ in model.named_parameters() if name.endswith("bias")}
        case Lora():
            return head | {name for name, _ in model.named_parameters() if ".lora_" in name}
        case _:
            assert_never(config.tuning)


def _trainable(model: nn.Module, config: ImageSide) -> frozenset[str]:
    match config.trainable:
        case "all":
            return frozenset(name for name, _ in model.named_parameters())
        case "head":
            return frozenset(head_names(model))
        case LastBlocks(last_blocks=wanted):
            if not isinstance(model, Clip):
                return _last_blocks(model, wanted, config.encoder)
            if isinstance(config, ClipConfig) and config.library == "open_clip":
                raise ConfigError(
                    f"model.trainable.last_blocks: {config.encoder} of open_clip is not divided into blocks; "
                    "use all, head, or a tuning."
                )
            # As a classifier, whose last norm belongs to its head; the groups have the same names.
            twin = architecture(config, 2, "meta")
            below = _last_blocks(twin, wanted, config.encoder) - frozenset(head_names(twin))
            return frozenset(head_names(model)) | {f"image.{name}" for name in below}


def _last_blocks(model: nn.Module, wanted: int, encoder: str) -> frozenset[str]:
    """The group of the classifier (timm puts a last norm with it) and `wanted` groups before it."""
    grouped = timm.models.group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    groups = [frozenset(grouped[place]) for place in sorted(grouped)]
    head = frozenset(head_names(model))
    blocks = [group for group in groups if head.isdisjoint(group)]
    if wanted > len(blocks):
        raise ConfigError(
            f"model.trainable.last_blocks: {encoder} has {len(blocks)} groups of layers below its head, "
            f"found {wanted}; give at most {len(blocks)}, or trainable: all."
        )
    ends = [group for group in groups if not head.isdisjoint(group)]
    return frozenset().union(*ends, *blocks[-wanted:])


def _normalisation(model: nn.Module) -> list[frozenset[str]]:
    """Per batch-norm layer: names of its scale, its shift and its float running statistics."""
    return [
        frozenset(
            f"{path}.{name}" if path else name
            for name, tensor in layer.state_dict().items()
            if tensor.is_floating_point()
        )
        for path, layer in model.named_modules()
        if isinstance(layer, BatchNorm)
    ]


# --- applying ------------------------------------------------------------------------------------


def freeze(model: nn.Module, names: TensorNames) -> None:
    """Let gradients reach the trained parameters only."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names.trained)


def train_mode(model: nn.Module, names: TensorNames) -> None:
    """Training mode for what is trained; what is frozen computes as it will in use.

    A batch-norm layer in training mode moves its statistics even without gradients, and
    dropout inside a frozen encoder would only blur the features of a head.
    """
    model.train()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        floats = [prefix + name for name, tensor in module.state_dict().items() if tensor.is_floating_point()]
        if floats and names.trained.isdisjoint(floats):
            module.eval()
        elif isinstance(module, BatchNorm) and f"{prefix}running_mean" not in names.trained:
            module.eval()  # only its shift is trained


def statistics_momentum(model: nn.Module, names: TensorNames) -> float | None:
    """Largest share of one forward pass in running statistics that travel; None if none do."""
    shared = set(names.shared)
    momenta = [
        0.0 if layer.momentum is None else layer.momentum  # None: a plain mean over all passes
        for path, layer in model.named_modules()
        if isinstance(layer, BatchNorm) and (f"{path}.running_mean" if path else "running_mean") in shared
    ]
    return max(momenta, default=None)


def layout(model: nn.Module, names: TensorNames) -> dict[str, TensorSpec]:
    """Names, shapes and kinds of the tensors that travel."""
    parameters = {name for name, _ in model.named_parameters()}
    return {
        name: TensorSpec.model_validate(
            {
                "shape": tuple(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "role": "parameter" if name in parameters else "statistic",
            }
        )
        for name, tensor in _tensors(model, names.shared).items()
    }


def shared_arrays(model: nn.Module, names: TensorNames) -> dict[str, Array]:
    """Copies of the tensors that travel."""
    return _arrays(model, names.shared)


def load_shared(model: nn.Module, names: TensorNames, arrays: Arrays) -> None:
    """Put what arrived into the model, on its device and in its number format. Raises WireError."""
    _load(model, names.shared, arrays)


def local_arrays(model: nn.Module, names: TensorNames) -> dict[str, Array]:
    """Copies of the tensors that this site trains and keeps."""
    return _arrays(model, names.local)


def all_arrays(model: nn.Module, names: TensorNames) -> dict[str, Array]:
    """Copies of the tensors that travel and of those that this site keeps."""
    return {**shared_arrays(model, names), **local_arrays(model, names)}


def load_local(model: nn.Module, names: TensorNames, arrays: Arrays) -> None:
    """Put back what this site kept. Raises WireError."""
    _load(model, names.local, arrays)


def frozen_digest(model: nn.Module, names: TensorNames) -> str:
    """Hash of the frozen tensors; equal at every site of a study."""
    return digest(_arrays(model, names.frozen))


def _tensors(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: state[name] for name in names}


def _arrays(model: nn.Module, names: Collection[str]) -> dict[str, Array]:
    return {
        name: np.array(tensor.detach().cpu().numpy(), order="C")  # always a copy, never a view
        for name, tensor in _tensors(model, names).items()
    }


def _load(model: nn.Module, names: Collection[str], arrays: Arrays) -> None:
    tensors = _tensors(model, names)
    for name in sorted(tensors.keys() | arrays.keys()):  # all of it is checked before any of it is used
        if name not in arrays:
            raise WireError(f"tensor {name} is missing; the model has it")
        if name not in tensors:
            raise WireError(f"tensor {name} came along, but it is not one that travels in this study")
        if arrays[name].shape != tuple(tensors[name].shape):
            raise WireError(
                f"tensor {name} has shape {list(arrays[name].shape)}, expected {list(tensors[name].shape)}"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))
