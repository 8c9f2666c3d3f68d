"""The model as every site builds it: the same bits from the same study.

Weights come from the study's seed, from a file that each site holds and whose checksum the study
names, or from timm's hub if, and only if, the study says so. Missing and surplus tensors of a
file are reported; a file of another model is refused rather than loaded in part.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from client.images import Preprocessing
from client.model import open_clip, text, tuning
from client.model.clip import Clip, ClipHead
from client.model.encoders import architecture, preprocessing, timm_name
from client.model.parameters import head_names
from client.model.text import ClassTexts
from client.model.weights_file import verified
from common.config import (
    ClassifierConfig,
    ClipConfig,
    FileWeights,
    HubWeights,
    HuggingFaceText,
    ImageSide,
    ModelConfig,
    OpenClipText,
    RandomText,
    SeedWeights,
    StudyConfig,
    prompts,
)
from common.errors import ConfigError, SiteDataError

_SMALL = 0.01
"""Standard deviation of a new classifier's weights: the first loss is then close to ln(classes)."""
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
    """A float32 model on the CPU, the preprocessing of its images, and where its weights came from."""

    model: nn.Module
    preprocessing: Preprocessing
    report: LoadReport


def build(
    config: ModelConfig,
    num_classes: int,
    seed: int,
    weights_dir: Path | None,
    class_prompts: prompts.Prompts = (),
) -> Built:
    """Build the study's model. Raises ConfigError and SiteDataError.

    `class_prompts` are the study's prompts; only a text tower that is trained needs them. torch's own
    generator is left as it was: building a model must not shift other random draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        match config:
            case ClassifierConfig():
                model, report = _encoder(config, num_classes, weights_dir)
                images = preprocessing(config)
            case ClipConfig():
                model, images, report = _clip(config, num_classes, weights_dir, class_prompts)
            case _:
                assert_never(config)
        tuning.install(model, config, images.image_size)
    return Built(model.float(), images, report)


def of_study(study: StudyConfig, weights_dir: Path | None) -> Built:
    """Build the model of a whole study, which also says what its classes are called."""
    return build(study.model, len(study.classes), study.seed, weights_dir, study.class_prompts)


def _encoder(config: ImageSide, num_classes: int, weights_dir: Path | None) -> tuple[nn.Module, LoadReport]:
    """timm's encoder with a linear head, or without one if there are 0 classes."""
    match config.weights:
        case SeedWeights():
            model, report = architecture(config, num_classes), LoadReport("the study's seed")
            is_new = True
        case FileWeights() as wanted:
            path = verified(wanted, weights_dir)  # before the model: this is what goes wrong
            model = architecture(config, num_classes)
            report = _load(model, path, config.encoder)
            is_new = report.reshaped_head or bool(set(head_names(model)) & set(report.missing))
        case HubWeights():
            model, report = _from_hub(config, num_classes)
            is_new = report.reshaped_head
        case _:
            assert_never(config.weights)
    if num_classes and is_new:
        _start_head(model, config.head_start)
    return model, report


def _start_head(model: nn.Module, start: Literal["small", "zeros", "library"]) -> None:
    """Draw the weights of a new classifier; its biases are 0. Its norms, if any, stay as they are."""
    if start == "library":
        return
    for name in head_names(model):
        tensor = model.get_parameter(name)
        with torch.no_grad():
            if tensor.ndim == 1:
                if name.endswith("bias"):
                    tensor.zero_()
            elif start == "zeros":
                tensor.zero_()
            else:
                tensor.normal_(std=_SMALL)


def _clip(
    config: ClipConfig, num_classes: int, weights_dir: Path | None, class_prompts: prompts.Prompts
) -> tuple[nn.Module, Preprocessing, LoadReport]:
    match config.library:
        case "timm":
            image, report = _encoder(config, 0, weights_dir)
            images = preprocessing(config)
            num_features = int(getattr(image, "head_hidden_size", image.num_features))  # type: ignore[arg-type]
        case "open_clip":
            image, images, num_features = open_clip.image_tower(config, weights_dir)
            report = LoadReport(open_clip.origin(config.weights, config.encoder))
    classes = _classes(config, num_classes, weights_dir, class_prompts)
    width = classes.shape[1] if isinstance(classes, Tensor) else classes.width
    if config.library == "timm":
        projection: nn.Module = nn.Linear(num_features, width)
    elif width == num_features:
        projection = nn.Identity()
    else:
        raise ConfigError(
            f"model.text gives {width} numbers a class, but {config.encoder} has its own projection to "
            f"{num_features}; take the text tower of {config.encoder}, or an encoder of timm, whose "
            "projection is learned."
        )
    return Clip(image, ClipHead(projection, classes, config.temperature), width), images, report


def _classes(
    config: ClipConfig, num_classes: int, weights_dir: Path | None, class_prompts: prompts.Prompts
) -> Tensor | ClassTexts:
    """Class vectors (C, W), or the tower that gives them."""
    match config.text:
        case RandomText(width=width):
            return normalize(torch.randn(num_classes, width), dim=1)
        case OpenClipText(trainable=True) | HuggingFaceText(trainable=True):
            return text.class_texts(config.text, class_prompts, weights_dir)
        case OpenClipText() | HuggingFaceText():
            if config.vectors is None:
                raise ConfigError(
                    "model.text names a text tower, but the study does not say what it makes of the classes; "
                    "see `consilium-site embed-prompts`."
                )
            return torch.from_numpy(prompts.unpack(config.vectors.float32, num_classes))
        case _:
            assert_never(config.text)


def _load(model: nn.Module, path: Path, encoder: str) -> LoadReport:
    try:
        source: Mapping[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SiteDataError(f"{path} is not a safetensors file ({error}); ask the study operator.") from error
    # Integer buffers only count batches, and timm's files leave them out.
    known = model.state_dict()  # once: it walks through every module
    target = {name: tensor for name, tensor in known.items() if tensor.is_floating_point()}
    missing = tuple(name for name in target if name not in source)
    unexpected = tuple(name for name in source if name not in known)
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


def _from_hub(config: ImageSide, num_classes: int) -> tuple[nn.Module, LoadReport]:
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
