"""The model card: what was trained, on what, and what it may be used for."""

import json
import math
from typing import Any, assert_never

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
    FedNova,
    FedProx,
    FedYogi,
    HuggingFaceText,
    LinearProbe,
    Lora,
    OpenClipText,
    RandomText,
    Scaffold,
    SeedWeights,
    StudyConfig,
)
from common.formats import yaml_text
from common.release import version
from server.report import privacy_table, subgroup_table
from server.report.outcome import Outcome
from server.report.plots import SYNTHETIC
from server.report.text import counted, escaped, listed, markdown_table


def model_card(outcome: Outcome) -> str:
    """The model card as a section of the report."""
    study = outcome.study
    rows = []
    for site in study.sites.train:
        trained = [row for row in outcome.rows_of(site) if row.trained]
        images = (
            "-" if any(row.masked for row in trained) else max((r.num_examples for r in trained), default=0)
        )
        rows.append([site, str(images), str(len(trained))])
    stored = "as stored in `weights.safetensors`"
    if not outcome.rounds:
        stored = "not on record, as no weights are"
    elif not outcome.is_closed:
        stored += ", which is written when the study finishes; until then in its checkpoints"
    preprocessing = (
        stored if outcome.preprocessing is None else f"`{json.dumps(dict(outcome.preprocessing))}`"
    )
    started = f"`{study.model.weights.model_dump_json()}`"
    if study.start_from is not None:
        given = study.start_from
        origin = f"the weights of {escaped(given.name)}, which the server sent (hash `{given.sha256[:12]}`)"
        started = f"{origin}; layers that are not trained from {started}"
    elif outcome.start_from is not None:
        started = f"the operator's file `{outcome.start_from}`; layers that are not trained from {started}"
    size = "the encoder's own" if study.model.image_size is None else f"{study.model.image_size} px"
    items = {
        "Intended use": "research only. Not a medical device: it must not be used to diagnose or treat anyone.",
        "Classes": ", ".join(study.classes) + " (in the order of the outputs)",
        "Encoder": f"`{study.model.encoder}`, image size {size}, trained: {_trainable(study)}, "
        f"normalisation layers: {study.model.batch_norm if study.model.tuning is None else 'as they came'}",
        "Started from": started,
        **_text_side(study),
        "Preprocessing": preprocessing,
        "Known limits": f"it knows these classes only and will name one of them for any image; {_reach(outcome)}.",
        **_outliers(outcome),
        **_privacy(outcome),
        **subgroup_table.summary(outcome),
        **_gaps(outcome),
        "Seed and fingerprint": f"{study.seed}, `{study.fingerprint}`",
        "Written by": f"consilium-fl {version()}",
    }
    head = ["training site", "training images a round", "rounds with its update"]
    if outcome.synthetic:
        items = {"Data": f"**{SYNTHETIC}.**"} | items
    return "\n\n".join(
        [
            "## Model card",
            "\n".join(f"- **{name}**: {text}" for name, text in items.items()),
            *([markdown_table(head, rows)] if study.rounds else []),
        ]
    )


def _outliers(outcome: Outcome) -> dict[str, str]:
    found = outcome.outliers
    if found is None or found.limit is None:
        return {}
    return {
        "Images of another kind": f"`predict` flags images whose outlier score is above {found.limit:.3g}, as "
        f"{100 * found.flagged:g} % or fewer of images like the validation images are; it can miss some."
    }


def front_matter(outcome: Outcome) -> str:
    """The head of a model card as Hugging Face's hub reads it: YAML between two lines of dashes.

    Format: https://github.com/huggingface/hub-docs/blob/main/modelcard.md. Figures are those of all sites together.
    It names no licence, because that depends on the weights that training began with and on what the sites agreed.
    """
    study, final = outcome.study, outcome.final
    about: dict[str, Any] = {
        "library_name": "open_clip" if getattr(study.model, "library", "timm") == "open_clip" else "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "federated-learning", "medical", "research-only"],
        "metrics": [name for name, _ in _HUB_METRICS],
    }
    if final is not None:
        figures = {name: getattr(final.pooled.figures, field) for name, field in _HUB_METRICS}
        data = f"{final.side} images of {counted(len(final.sites) or len(final.pooled_only), 'site')}"
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": data, "type": "private", "split": final.side},
            "metrics": [
                {"type": name, "value": round(value, 4)}
                for name, value in figures.items()
                if math.isfinite(value)
            ],
        }
        about["model-index"] = [{"name": study.name, "results": [result]}]
    return f"---\n{yaml_text.dump(about)}---\n"


_HUB_METRICS = (
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced_accuracy"),
    ("f1", "f1_macro"),
    ("roc_auc", "auroc_macro"),
    ("expected_calibration_error", "ece"),
)
"""The hub's names, and the figures'."""


def _reach(outcome: Outcome) -> str:
    if outcome.final is None:
        return "it was not scored, so nothing is known of how well it does so"
    side = outcome.final.side
    return f"the figures hold for images like the {side} images of the sites in the table of figures, and no further"


def _privacy(outcome: Outcome) -> dict[str, str]:
    privacy = outcome.study.privacy
    if privacy is None:
        return {}
    spent = privacy_table.by_site(outcome)
    each = ", ".join(f"{site} {epsilon:.3g}" for site, epsilon in spent.items())
    shown = f"epsilon {max(spent.values()):.3g} at most ({each})" if spent else "no site named an epsilon"
    return {
        "Differential privacy": f"{shown}, at delta {privacy.delta:g}, for each patient of a training site, in this "
        "study"
    }


def _gaps(outcome: Outcome) -> dict[str, str]:
    """What a reader would take for granted and is not so."""
    items = {}
    if untrained := _untrained_classes(outcome):
        items["Classes without training images"] = (
            f"{', '.join(untrained)}: no site that trained counted an image of them, so the model cannot know them."
        )
    if never := outcome.never_there:
        each = "; ".join(f"{site} ({escaped(reason)})" for site, reason in never.items())
        items["Sites that took no part"] = (
            f"{each}. The model has not seen their images, and they did not score it."
        )
    silent = {site: reason for site, reason in outcome.unscored.items() if site not in never}
    if silent:
        each = "; ".join(f"{site} ({escaped(reason)})" for site, reason in silent.items())
        models = [model for record in outcome.rounds for model in (record.validation, record.test)]
        earlier = [site for site in silent if any(model and site in model.sites for model in models)]
        also = f". {listed(earlier)} scored an earlier model" if earlier else ""
        items["Not scored by"] = f"{each}{also}."
    if not outcome.is_closed:
        rounds = counted(outcome.num_rounds, "round")
        items["State"] = f"NOT finished: {rounds} of {outcome.study.rounds} on record, no closing evaluation."
    elif outcome.is_incomplete:
        items["State"] = "finished, INCOMPLETE: a site that was to score the final model did not."
    return items


def _untrained_classes(outcome: Outcome) -> list[str]:
    if outcome.census is None or not outcome.trained:
        return list(outcome.study.untrained_classes)
    held = outcome.census.trained_on(outcome.trained)
    return [name for place, name in enumerate(outcome.study.classes) if not any(c[place] for c in held)]


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
            f"{name} “{escaped(texts[0])}”"
            for name, texts in zip(study.classes, study.class_prompts, strict=True)
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
        case Scaffold(server_lr=lr):
            return f"SCAFFOLD (server learning rate {lr:g})"
        case FedNova():
            return "FedNova (their mean, weighted by images, each divided by the length of its way)"
        case FedAvgM(server_lr=lr, momentum=momentum, damped=damped):
            return (
                f"FedAvgM (server learning rate {lr:g}, momentum {momentum:g}{', damped' if damped else ''})"
            )
        case FedAdam(server_lr=lr):
            return f"FedAdam (server learning rate {lr:g})"
        case FedYogi(server_lr=lr):
            return f"FedYogi (server learning rate {lr:g})"
        case FedAdagrad(server_lr=lr):
            return f"FedAdagrad (server learning rate {lr:g})"
        case _:
            assert_never(algorithm)
