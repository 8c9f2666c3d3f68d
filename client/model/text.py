"""Class vectors from a text tower: one unit vector per class.

A prompt becomes a vector of length 1; of several prompts of a class the mean is taken and made of length
1 again, as CLIP's authors do for their ensembles (Radford et al. 2021, arXiv:2103.00020, section 3.1.4).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from client.model import open_clip
from client.model.weights_file import verified
from common import log
from common.config import FileWeights, HubWeights, HuggingFaceText, OpenClipText
from common.config.prompts import Prompts
from common.errors import SiteDataError


class ClassTexts(nn.Module):
    """A text tower and the prompts it reads."""

    tokens_PL: Tensor

    def __init__(self, tower: nn.Module, tokens_PL: Tensor, num_classes: int, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("tokens_PL", tokens_PL, persistent=False)
        self.num_classes = num_classes
        self.width = width

    def forward(self) -> Tensor:
        """`vectors_CW` of length 1."""
        vectors_PW = normalize(self.tower(self.tokens_PL), dim=1)
        return normalize(vectors_PW.view(self.num_classes, -1, self.width).mean(dim=1), dim=1)


def class_texts(
    config: OpenClipText | HuggingFaceText, class_prompts: Prompts, weights_dir: Path | None
) -> ClassTexts:
    """The study's text tower over the study's prompts. Raises ConfigError and SiteDataError.

    Warns of prompts that are longer than the tower reads.
    """
    match config:
        case OpenClipText():
            tower, tokenizer, width = open_clip.text_tower(config, weights_dir)
            count = _counter(tokenizer)
        case HuggingFaceText():
            tower, tokenizer, width = _hugging_face(config, weights_dir)
            count = _counter(tokenizer)
        case _:
            assert_never(config)
    prompts = [prompt for of_class in class_prompts for prompt in of_class]
    for prompt in prompts:
        if (num_tokens := count(prompt)) > tokenizer.context_length:
            log.warn(
                f"a prompt of {num_tokens} tokens is cut at the {tokenizer.context_length} that the text tower reads: "
                f"{prompt[:60]}..."
            )
    return ClassTexts(tower, tokenizer(prompts), len(class_prompts), width)


def embed(
    config: OpenClipText | HuggingFaceText, class_prompts: Prompts, weights_dir: Path | None, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Unit vectors (C, W) of the classes; `seed` is that of a tower with random weights.

    Raises ConfigError and SiteDataError.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        texts = class_texts(config, class_prompts, weights_dir).eval()
        vectors_CW: npt.NDArray[np.float32] = texts().float().numpy()
    if not np.isfinite(vectors_CW).all():
        raise SiteDataError(
            "the text tower gives numbers that are not finite; its weights are damaged, fetch them again"
        )
    return vectors_CW


def _counter(tokenizer: Any) -> Callable[[str], int]:
    """Tokens of a prompt, start and end included, before anything is cut."""
    if hasattr(tokenizer, "encode"):  # open_clip's own
        return lambda prompt: len(tokenizer.encode(prompt)) + 2
    return lambda prompt: len(tokenizer.tokenizer(prompt)["input_ids"])


def _hugging_face(config: HuggingFaceText, weights_dir: Path | None) -> tuple[nn.Module, Any, int]:
    from open_clip.hf_model import HFTextEncoder
    from open_clip.tokenizer import HFTokenizer
    from transformers import AutoConfig
    from transformers.utils import logging

    match config.weights:
        case FileWeights() as wanted:
            place = str(verified(wanted, weights_dir, inside="model.safetensors").parent)
        case HubWeights(tag=tag):
            place = str(tag)
        case _:
            assert_never(config.weights)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it reports a sentence model's unused last layer as if it were wrong
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        width = int(AutoConfig.from_pretrained(place).hidden_size)
        tower: nn.Module = HFTextEncoder(place, width, pooler_type=f"{config.pooling}_pooler")
        return tower, HFTokenizer(place, context_length=config.context_length), width
    except Exception as error:  # transformers, its hub's client and the network each have their own errors
        raise SiteDataError(
            f"{place} cannot be read as a text model with its tokenizer ({type(error).__name__}: {error}); it takes "
            "config.json, model.safetensors and the tokenizer's files, as Hugging Face saves them."
        ) from error
