"""The model card: what was trained, on what, and what it may be used for."""

import json
from typing import assert_never

from common.config import (
    Algorithm,
    BitFit,
    Bottleneck,
    ClassifierConfig,
    ClipConfig,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    HuggingFaceText,
    LinearProbe,
    Lora,
    OpenClipText,
    RandomText,
    SeedWeights,
    StudyConfig,
)
from server.report.outcome import Outcome
from server.report.plots import SYNTHETIC
from server.report.text import counted, markdown_table


def model_card(outcome: Outcome) -> str:
    """The model card as a section of the report."""
    study = outcome.study
    rows = []
    for site in study.sites.train:
        trained = [
            row.num_examples
            for record in outcome.rounds
            for row in record.sites
            if row.site == site and row.outcome == "ok" and row.num_examples
        ]
        rows.append([site, str(max(trained, default=0)), str(len(trained))])
    preprocessing = (
        "as stored in `weights.safetensors`"
        if outcome.preprocessing is None
        else f"`{json.dumps(dict(outcome.preprocessing))}`"
    )
    size = "the encoder's own" if study.model.image_size is None else f"{study.model.image_size} px"
    items = {
        "Intended use": "research only. Not a medical device: it must not be used to diagnose or treat anyone.",
        "Classes": ", ".join(study.classes) + " (in the order of the outputs)",
        "Encoder": f"`{study.model.encoder}`, image size {size}, trained: {_trainable(study)}, "
        f"normalisation layers: {study.model.batch_norm if study.model.tuning is None else 'as they came'}",
        "Started from": f"`{study.model.weights.model_dump_json()}`",
        **_text_side(study),
        "Preprocessing": preprocessing,
        "Known limits": "it knows these classes only and will name one of them for any image; the figures "
        "hold for images like the test images of the sites above, and no further.",
        "Seed and fingerprint": f"{study.seed}, `{study.fingerprint}`",
    }
    if outcome.synthetic:
        items = {"Data": f"**{SYNTHETIC}.**"} | items
    return "\n\n".join(
        [
            "## Model card",
            "\n".join(f"- **{name}**: {text}" for name, text in items.items()),
            markdown_table(["training site", "training images a round", "rounds with its update"], rows),
        ]
    )


def model_kind(study: StudyConfig) -> str:
    """The subject of the report's first sentence: which kind of model."""
    match study.model:
        case ClassifierConfig(encoder=encoder):
            return f"An image classifier (`{encoder}`)"
        case ClipConfig(encoder=encoder, loss=loss):
            return f"A CLIP with the image encoder `{encoder}`, trained by its {loss.replace('_', ' ')} loss,"
        case _:
            assert_never(study.model)


def _text_side(study: StudyConfig) -> dict[str, str]:
    """Where a CLIP's class vectors come from. A random one says so: it knows nothing of what a class is called."""
    if isinstance(study.model, ClassifierConfig):
        return {}
    match study.model.text:
        case RandomText(width=width):
            source = f"RANDOM directions of {width} numbers from the seed; there is no text tower"
        case OpenClipText(architecture=name, weights=SeedWeights()):
            source = f"open_clip's text tower `{name}` with RANDOM weights"
        case OpenClipText(architecture=name, weights=weights):
            source = f"open_clip's text tower `{name}`, `{weights.model_dump_json()}`"
        case HuggingFaceText(weights=weights):
            source = f"a Hugging Face text model, `{weights.model_dump_json()}`"
        case _:
            assert_never(study.model.text)
    if study.class_prompts:
        tower = study.model.text
        trained = not isinstance(tower, RandomText) and tower.trainable
        source += f", {'trained with the rest' if trained else 'asked once'}: " + "; ".join(
            f"{name} “{texts[0]}”" for name, texts in zip(study.classes, study.class_prompts, strict=True)
        )
        if len(study.class_prompts[0]) > 1:
            source += f", and {len(study.class_prompts[0]) - 1} more prompt(s) each"
    return {"Class vectors": source}


def _trainable(study: StudyConfig) -> str:
    match study.model.tuning:
        case None:
            pass
        case LinearProbe():
            return "the head only"
        case BitFit():
            return "the head and every bias (BitFit)"
        case Lora(rank=rank, layers=layers):
            return f"the head and products of rank {rank} beside {'' if layers == 'all' else layers + ' '}layers (LoRA)"
        case Bottleneck(reduction=reduction):
            return f"the head and an adapter before it, {reduction} times narrower than the features"
        case _:
            assert_never(study.model.tuning)
    match study.model.trainable:
        case "all":
            return "all layers"
        case "head":
            return "the head only"
        case blocks:
            return f"the head and the last {counted(blocks.last_blocks, 'block')}"


def algorithm_name(algorithm: Algorithm) -> str:
    """The algorithm with its settings, as the report names it."""
    match algorithm:
        case FedAvg():
            return "FedAvg (their mean, weighted by images)"
        case FedProx(mu=mu, squared=squared):
            return f"FedProx (mu {mu:g}{'' if squared else ', norm not squared'})"
        case FedAvgM(server_lr=lr, momentum=momentum):
            return f"FedAvgM (server learning rate {lr:g}, momentum {momentum:g})"
        case FedAdam(server_lr=lr):
            return f"FedAdam (server learning rate {lr:g})"
        case FedYogi(server_lr=lr):
            return f"FedYogi (server learning rate {lr:g})"
        case FedAdagrad(server_lr=lr):
            return f"FedAdagrad (server learning rate {lr:g})"
        case _:
            assert_never(algorithm)
