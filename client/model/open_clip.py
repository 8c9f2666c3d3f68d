"""Image and text towers of CLIP, as open_clip builds them.

Only what is needed is built: an image tower comes without its text tower, which is several times as
large as the prompts it would read. A name that open_clip would look up on a hub is refused unless the
study takes its weights from there.
"""

import difflib
from functools import cache
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from safetensors.torch import load_file
from torch import nn

from client.images import Preprocessing
from client.model.weights_file import verified
from common.config import ClipConfig, FileWeights, HubWeights, OpenClipText, SeedWeights, StartWeights
from common.errors import ConfigError, SiteDataError

# As small as open_clip can build it; never used.
_NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 2, "heads": 1, "layers": 1}


def origin(weights: StartWeights, name: str) -> str:
    """Where weights come from, for the log."""
    match weights:
        case SeedWeights():
            return "the study's seed"
        case FileWeights(name=file):
            return f"the file {file}"
        case HubWeights(tag=tag):
            return f"open_clip's hub, {name}/{tag}"
        case _:
            assert_never(weights)


def image_tower(config: ClipConfig, weights_dir: Path | None) -> tuple[nn.Module, Preprocessing, int]:
    """CLIP's own image tower with its projection, its preprocessing and the length of what it gives.

    Raises ConfigError and SiteDataError.
    """
    import open_clip

    known = _known(config.encoder, "model.encoder")
    match config.weights:
        case HubWeights(tag=tag):
            model = _fetched(config.encoder, tag, config.image_size)
        case SeedWeights() | FileWeights():
            path = None if isinstance(config.weights, SeedWeights) else verified(config.weights, weights_dir)
            vision = known["vision_cfg"] | {"timm_model_pretrained": False}
            if config.image_size is not None:
                vision["image_size"] = config.image_size
            quick = known.get("quick_gelu", False)
            model = open_clip.CLIP(known["embed_dim"], vision, _NO_TEXT, quick_gelu=quick)
            if path is not None:
                _load(model, path, config.encoder, "visual")
        case _:
            assert_never(config.weights)
    return model.visual, _preprocessing(model), int(known["embed_dim"])


def require_image_tower(config: ClipConfig) -> None:
    """Raises ConfigError if open_clip has no such tower, or it cannot take the image size; tried on shapes alone."""
    own = _known(config.encoder, "model.encoder")["vision_cfg"].get("image_size", 224)
    size = config.image_size
    # A tower that cannot be tried in this way at its own size is not refused at another.
    if size is not None and not _takes(config.encoder, size) and _takes(config.encoder, own):
        raise ConfigError(
            f"model.image_size: open_clip's {config.encoder} cannot take {size} pixels a side; it was made for {own}."
        )


@cache
def _takes(name: str, size: int) -> bool:
    import open_clip

    known = _known(name, "model.encoder")
    vision = known["vision_cfg"] | {"timm_model_pretrained": False, "image_size": size}
    try:
        with torch.device("meta"), torch.inference_mode():
            model = open_clip.CLIP(
                known["embed_dim"], vision, _NO_TEXT, quick_gelu=known.get("quick_gelu", False)
            )
            model.visual.eval()(torch.empty(2, 3, size, size))
    except Exception:  # towers refuse a size in many ways
        return False
    return True


def text_tower(config: OpenClipText, weights_dir: Path | None) -> tuple[nn.Module, Any, int]:
    """CLIP's own text tower, its tokenizer and the length of what it gives. Raises ConfigError, SiteDataError."""
    import open_clip

    known = _known(config.architecture, "model.text.architecture")
    looked_up = known["text_cfg"].keys() & {"hf_model_name", "hf_tokenizer_name"}
    if looked_up and not isinstance(config.weights, HubWeights):
        raise ConfigError(
            f"model.text.architecture: the text side of {config.architecture} is of Hugging Face's hub, expected "
            "one that open_clip brings along; use text.kind: hugging_face, or weights.kind: hub."
        )
    match config.weights:
        case HubWeights(tag=tag):
            model = _fetched(config.architecture, tag, None, force_custom_text=True)
        case SeedWeights() | FileWeights():
            path = None if isinstance(config.weights, SeedWeights) else verified(config.weights, weights_dir)
            model = open_clip.create_model(config.architecture, force_custom_text=True, pretrained_text=False)
            if path is not None:
                _load(model, path, config.architecture, "text")
        case _:
            assert_never(config.weights)
    return model.text, open_clip.get_tokenizer(config.architecture), int(known["embed_dim"])


def _known(name: str, field: str) -> dict[str, Any]:
    import open_clip

    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.3)
        raise ConfigError(
            f"{field}: open_clip {open_clip.__version__} has no model {name!r}; did you mean {', '.join(close)}?"
        )
    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def _fetched(name: str, tag: str | None, image_size: int | None, **settings: Any) -> Any:
    import open_clip

    try:
        return open_clip.create_model(name, pretrained=tag, force_image_size=image_size, **settings)
    except Exception as error:  # open_clip, the hub's client and the network each have their own errors
        raise SiteDataError(
            f"open_clip's weights {name}/{tag} could not be fetched ({type(error).__name__}: {error}). Give "
            "this machine the internet or a filled cache, or name a file with weights.kind: file."
        ) from error


def _load(model: Any, path: Path, name: str, side: Literal["visual", "text"]) -> None:
    """Load one side of a whole CLIP's file into that side of `model`. Raises SiteDataError."""
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    try:
        source: dict[str, Any] = load_file(path)
        if (
            side == "text"
        ):  # older files have the text tower's tensors beside the image tower, not under a name
            source = convert_to_custom_text_state_dict(source)
        source = {tensor: value for tensor, value in source.items() if tensor.startswith(f"{side}.")}
        (resize_pos_embed if side == "visual" else resize_text_pos_embed)(source, model)
        stripped = {tensor.removeprefix(f"{side}."): value for tensor, value in source.items()}
        missing = getattr(model, side).load_state_dict(stripped, strict=False).missing_keys
    except Exception as error:  # safetensors and open_clip each have their own errors
        raise SiteDataError(
            f"{path} is not a file with weights of {name} ({type(error).__name__}: {error}); "
            "ask the study operator."
        ) from error
    if missing:
        raise SiteDataError(
            f"{path} lacks {len(missing)} tensors of {name}'s {side} side ({', '.join(missing[:3])}, ...), expected "
            "the weights of a whole CLIP as open_clip saves it; name the model that the file was made with."
        )


def _preprocessing(model: Any) -> Preprocessing:
    import open_clip

    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"]
    return Preprocessing(
        image_size=size if isinstance(size, int) else size[0],
        mean=settings.get("mean", open_clip.OPENAI_DATASET_MEAN),
        std=settings.get("std", open_clip.OPENAI_DATASET_STD),
        interpolation=settings.get("interpolation", "bicubic"),
        crop_share=1,  # open_clip resizes the shorter side to the tower's size and crops the rest
    )
