"""The model as every site builds it: the same bits from the same study.

Weights come from the study's seed, from a file that each site holds and whose checksum the study
names, or from timm's hub if, and only if, the study says so. Whatever a file lacks, or has too
much of, is reported; a file of another model is refused rather than loaded in part.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from client.images import Preprocessing
from client.model.backbones import architecture, preprocessing, timm_name
from client.model.parts import head_names
from common.config import FileWeights, HubWeights, ModelConfig, SeedWeights
from common.errors import SiteDataError

_NAMED = 3
"""Differences that a message names before it counts the rest."""


@dataclass(frozen=True)
class LoadReport:
    """Where the weights came from, and what did not fit."""

    source: str
    missing: tuple[str, ...] = ()
    """Tensors of the model that the source lacks; they start from the seed."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the source that the model has no place for."""
    reshaped_head: bool = False
    """The source has other classes, so the head starts from the seed."""


@dataclass(frozen=True)
class Built:
    """A float32 model on the CPU, the images it wants, and how its weights were found."""

    model: nn.Module
    preprocessing: Preprocessing
    report: LoadReport


def build(config: ModelConfig, num_classes: int, seed: int, weights_dir: Path | None) -> Built:
    """Build the study's model. Raises ConfigError and SiteDataError.

    torch's own generator is left as it was: building a model must not shift anybody's draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, report = _build(config, num_classes, weights_dir)
    return Built(model.float(), preprocessing(config), report)


def _build(config: ModelConfig, num_classes: int, weights_dir: Path | None) -> tuple[nn.Module, LoadReport]:
    match config.weights:
        case SeedWeights():
            return architecture(config, num_classes), LoadReport("the study's seed")
        case FileWeights() as wanted:
            path = _verified(wanted, weights_dir)  # before the model: this is what goes wrong
            model = architecture(config, num_classes)
            return model, _load(model, path, config.encoder)
        case HubWeights():
            return _from_hub(config, num_classes)
        case _:
            assert_never(config.weights)


def _verified(wanted: FileWeights, weights_dir: Path | None) -> Path:
    if weights_dir is None:
        raise SiteDataError(
            f"the study starts from the file {wanted.name}, but this site has no weights_dir; "
            "put the file in a folder and name the folder in the site's settings."
        )
    path = weights_dir / wanted.name
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SiteDataError(
            f"{path} cannot be read ({error.strerror}); the study starts from it. Fetch it from the "
            "study operator and put it there."
        ) from error
    if found != wanted.sha256:
        raise SiteDataError(
            f"{path} has SHA-256 {found}, expected {wanted.sha256}; it is another file or was damaged "
            "on the way. Fetch it again from the study operator."
        )
    return path


def _load(model: nn.Module, path: Path, encoder: str) -> LoadReport:
    try:
        source: Mapping[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SiteDataError(f"{path} is not a safetensors file ({error}); ask the study operator.") from error
    # Integer buffers only count batches, and timm's files leave them out.
    target = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    missing = tuple(name for name in target if name not in source)
    unexpected = tuple(name for name in source if name not in model.state_dict())
    if 2 * len(missing) > len(target):
        raise _other_model(path, encoder, [f"{name} is missing" for name in missing], len(target))

    head = head_names(model)
    reshaped = any(name in source and source[name].shape != target[name].shape for name in head)
    if reshaped:
        source = {name: tensor for name, tensor in source.items() if name not in head}
    if _misfits(target, source):
        source = _resampled(model, source)
    misfits = _misfits(target, source)
    if misfits:
        raise _other_model(path, encoder, misfits, len(target))
    model.load_state_dict(source, strict=False)
    return LoadReport(f"the file {path.name}", missing, unexpected, reshaped)


def _misfits(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} is {list(source[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in target.items()
        if name in source and source[name].shape != tensor.shape
    ]


def _resampled(model: nn.Module, source: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Positions and windows stretched to the model's image size, as timm does for its own weights."""
    stretch = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if stretch is None:
        return source
    try:
        stretched: Mapping[str, Tensor] = stretch(dict(source), model)
    except Exception:  # weights of another model break timm's function anywhere in it
        return source
    return stretched


def _other_model(path: Path, encoder: str, differences: list[str], num_tensors: int) -> SiteDataError:
    named = "; ".join(differences[:_NAMED])
    rest = len(differences) - _NAMED
    return SiteDataError(
        f"{path} holds the weights of another model than {encoder}: {len(differences)} of {num_tensors} "
        f"tensors do not fit ({named}{f'; and {rest} more' if rest > 0 else ''}). Name the encoder "
        "that the file was made with in model.encoder, or another file in model.weights."
    )


def _from_hub(config: ModelConfig, num_classes: int) -> tuple[nn.Module, LoadReport]:
    name = timm_name(config.encoder)
    architecture(config, num_classes, "meta")  # a wrong size is not the hub's fault
    try:
        model = architecture(config, num_classes, pretrained=True)
    except Exception as error:  # timm, the hub's client and the network each have their own errors
        raise SiteDataError(
            f"timm's weights of {name} could not be fetched ({type(error).__name__}: {error}). Give the "
            "trainer the internet or a filled cache for its first start, or name a file with "
            "model.weights.kind: file."
        ) from error
    reshaped = getattr(model, "pretrained_cfg", {}).get("num_classes") != num_classes
    return model, LoadReport(
        f"timm's hub, {name}", missing=head_names(model) if reshaped else (), reshaped_head=reshaped
    )
