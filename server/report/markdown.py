"""The report as text, written for the people of a hospital rather than for those of this code.

It answers, in this order: how good is the final model, for whom, where does it err, how did it
get there, what did it cost, what went wrong, and what is it not for. Shares are in percent, as
the field prints them. The two readings of the paper's AVG carry names that say which is which,
because the paper (arXiv:2505.23040) does not say which one it prints.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from server.enrolment import census, overlap
from server.enrolment.census import Census
from server.enrolment.overlap import Overlap
from server.heads.record import Cell, HeadTable, titles
from server.report.plots import SYNTHETIC
from server.storage.history import RoundRecord, Scored


@dataclass(frozen=True)
class Outcome:
    """What the report is about."""

    study: StudyConfig
    rounds: Sequence[RoundRecord]
    preprocessing: Mapping[str, Any] | None
    synthetic: bool
    census: Census | None = None
    """None: not on record."""
    overlap: Overlap | None = None
    """None: nobody compared the sites' images."""
    heads: HeadTable | None = None

    @property
    def final(self) -> RoundRecord | None:
        """The record with the scores of the last model that was scored."""
        return next((record for record in reversed(self.rounds) if record.pooled is not None), None)


_LEGEND = (
    "Percent, except images and loss (cross-entropy, nats per image). *Pooled* counts every test image of "
    "every site once; it is not the mean of the rows above. *Balanced accuracy* is the mean recall over the "
    "classes present. *Weighted* means by the number of images of a class; weighted recall equals accuracy. "
    "*AUROC* is one-vs-rest, mean over classes, from score histograms. *ECE* is the expected calibration "
    "error over 15 bins. *AVG* is what the paper calls so; it can be read in two ways, hence two columns. "
    "The interval takes images as independent, so it is too narrow where a patient has several. `-`: the "
    "images cannot say, e.g. for want of test images."
)


def markdown(outcome: Outcome) -> str:
    """The whole report."""
    sections = [
        _title(outcome),
        *_data(outcome),
        _figures(outcome),
        _confusion(outcome),
        _classes(outcome),
        *_heads(outcome),
        _rounds(outcome),
        _costs(outcome),
        _troubles(outcome),
        _card(outcome),
    ]
    return "\n\n".join(sections) + "\n"


def _title(outcome: Outcome) -> str:
    study = outcome.study
    lines = [f"# {study.name}"]
    if outcome.synthetic:
        lines += [f"> **{SYNTHETIC.capitalize()}.**"]
    local = study.local
    amount = f"{local.steps} steps" if local.num_epochs is None else _count(local.num_epochs, "epoch")
    batch = "all images of a site at once" if local.batch_size == "all" else f"{local.batch_size} images"
    lines += [
        f"{_kind(study)} for {len(study.classes)} classes "
        f"({', '.join(study.classes)}) was trained by {_count(len(study.sites.train), 'site')} in "
        f"{_count(study.rounds, 'round')}, while every image stayed at its site.",
        f"Each round, {_sites(study.sites.train)} trained {amount} with {local.optimizer.kind}, "
        f"learning rate {local.optimizer.lr:g}, in batches of {batch}. The server joined the results by "
        f"{_algorithm(study.algorithm)}."
        + (
            f" {_sites(study.sites.evaluate)} never trained and only scored the model: "
            "images from where nothing was learnt."
            if study.sites.evaluate
            else ""
        ),
    ]
    return "\n\n".join(lines)


def _data(outcome: Outcome) -> list[str]:
    """What the sites hold, and whether those that only score are unseen; nothing if neither is known."""
    unseen = overlap.paragraphs(outcome.study, outcome.overlap)
    if outcome.census is None:
        return ["\n\n".join(["## The sites' images", *unseen])] if unseen else []
    head, body, foot = census.cells(outcome.study, outcome.census)
    table = _table(head, [*body, *foot])
    return [
        "\n\n".join(["## The sites' images", table, f"{census.NOTES[0].upper()}{census.NOTES[1:]}.", *unseen])
    ]


def _figures(outcome: Outcome) -> str:
    final = outcome.final
    if final is None or final.pooled is None:
        return "## The final model\n\nNo site scored the model: there are no figures to report."
    evaluate = outcome.study.sites.evaluate
    rows = [
        [f"{site} (only scores)" if site in evaluate else site, *_row(scored)]
        for site, scored in final.scored.items()
    ]
    rows.append(["**pooled**", *_row(final.pooled)])
    if final.pooled_training is not None:
        rows.append(["**pooled, training sites**", *_row(final.pooled_training)])
    planned = outcome.study.rounds
    early = "" if final.model_after_round >= planned else f", of {planned} planned"
    head = [
        "site", "images", "accuracy (95 % interval)", "balanced accuracy", "precision, weighted",
        "F1, weighted", "F1, macro", "AUROC", "ECE", "loss", "AVG (ACC, BACC, PRE, REC, F1)",
        "AVG (the same and AUROC)",
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"## The model after round {final.model_after_round}{early}",
            *_selected(outcome.study, final),
            _table(head, rows),
            _LEGEND,
        ]
    )


def _selected(study: StudyConfig, final: RoundRecord) -> list[str]:
    """What the study's selection came to, as paragraphs."""
    selection, best = study.selection, final.best
    if selection is None or best is None:
        return []
    chosen_by = _sites(selection.sites or study.sites.all)
    sentence = (
        f"The best {selection.metric} on the images of {chosen_by} was {best.value:.4f}, of the model after round "
        f"{best.round}; its weights are in `best.safetensors`."
    )
    if best.round != final.model_after_round:
        sentence += " The figures below are of the last round's model."
    return [f"{sentence} A model chosen by the images that it is reported on looks better than it is."]


def _row(scored: Scored) -> list[str]:
    f = scored.figures
    low, high = scored.accuracy_interval
    accuracy = (
        "-" if math.isnan(f.accuracy) else f"{_percent(f.accuracy)} ({_percent(low)} to {_percent(high)})"
    )
    return [
        str(f.num_images),
        accuracy,
        _percent(f.balanced_accuracy),
        _percent(f.precision_weighted),
        _percent(f.f1_weighted),
        _percent(f.f1_macro),
        _percent(f.auroc_macro),
        _percent(f.ece),
        _number(f.loss),
        _percent(f.avg_acc_bacc_pre_rec_f1),
        _percent(f.avg_acc_bacc_pre_rec_f1_auroc),
    ]


def _confusion(outcome: Outcome) -> str:
    final = outcome.final
    if final is None or final.pooled is None:
        return "## Confusion matrix\n\nNone, for want of scores."
    rows = [
        [f"**{name}**", *map(str, counts)]
        for name, counts in zip(outcome.study.classes, final.pooled.confusion_CC, strict=True)
    ]
    return "\n\n".join(
        [
            "## Confusion matrix, pooled",
            "Test images by true class (row) and by what the model said (column).",
            _table(["true \\ predicted", *outcome.study.classes], rows),
            "![Confusion matrix](confusion.png)",
        ]
    )


def _classes(outcome: Outcome) -> str:
    final = outcome.final
    if final is None or final.pooled is None:
        return "## Per class\n\nNothing, for want of scores."
    f = final.pooled.figures
    rows = [
        [name, str(support), *map(_percent, values)]
        for name, support, *values in zip(
            outcome.study.classes, f.support_C, f.recall_C, f.precision_C, f.f1_C, f.auroc_C, strict=True
        )
    ]
    head = ["class", "images", "recall", "precision", "F1", "AUROC"]
    return f"## Per class, pooled\n\n{_table(head, rows)}"


def _heads(outcome: Outcome) -> list[str]:
    """Classical heads beside the softmax: one table."""
    table = outcome.heads
    if table is None:
        return []
    evaluate = outcome.study.sites.evaluate
    sites = list(table.cells)
    head = ["head", *(f"{site} (only scores)" if site in evaluate else site for site in sites)]
    rows = [[title, *(_head_cell(table.cells[site].get(title)) for site in sites)] for title in titles(table)]
    told = [f"- {title} could not be had: {_cell(reason)}." for title, reason in table.lacking.items()]
    told += [f"- {site} had no part in {_cell(reason)}" for site, reason in table.problems.items()]
    return [
        "\n\n".join(
            [
                f"## Classical heads on the features of the model after round {table.round}",
                _table(head, rows),
                "Balanced accuracy in percent; in brackets the gain over the network's own softmax on the same "
                "images, in points, with its 95 % interval over patients or lesions, and `*` where McNemar's exact "
                "test gives p < 0.05. *local*: each site's own head on its own test images. *federated*: one head for "
                f"all, fitted in {table.num_messages} messages a site from sums and gradients. A table of many heads "
                "has some that look better by chance.",
                *(["\n".join(told)] if told else []),
            ]
        )
    ]


def _head_cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    if cell.problem:
        return cell.problem.replace("_", " ")
    if cell.balanced_accuracy is None:
        return "-"
    value = _percent(cell.balanced_accuracy)
    if cell.gain is None or cell.gain_low is None or cell.gain_high is None:
        return value
    mark = "*" if cell.mcnemar_p is not None and cell.mcnemar_p < 0.05 else ""
    ends = f"{100 * cell.gain_low:+.1f} to {100 * cell.gain_high:+.1f}"
    return f"{value} ({100 * cell.gain:+.1f}, {ends}){mark}"


def _rounds(outcome: Outcome) -> str:
    scored = {record.model_after_round: record for record in outcome.rounds}
    first = scored.get(0)
    rows = []
    if first is not None and first.pooled is not None:  # of a CLIP, what its authors call zero-shot
        rows.append(["0, before training", "-", "-", "-", *_scored_as(first), "-"])
    for record in outcome.rounds:
        if record.closing:
            continue  # the closing evaluation scores the model of the last row
        trained = [site for site in record.sites if site.outcome == "ok" and site.num_examples]
        num_images = sum(site.num_examples for site in trained)
        loss_sum = sum(site.num_examples * (site.train_loss or 0.0) for site in trained)
        rows.append(
            [
                str(record.round),
                str(len(trained)),
                str(num_images),
                _number(loss_sum / num_images if num_images else math.nan),
                *_scored_as(scored.get(record.round)),
                f"{record.seconds:.1f}",
            ]
        )
    head = [
        "round", "sites that trained", "images", "training loss", "test loss after it, pooled", "accuracy",
        "balanced accuracy", "seconds",
    ]  # fmt: skip
    return "\n\n".join(["## Rounds", _table(head, rows), "![Curves over the rounds](curves.png)"])


def _scored_as(record: RoundRecord | None) -> list[str]:
    """Loss, accuracy and balanced accuracy of the pooled test in one round's scores."""
    if record is None or record.pooled is None:
        return ["-", "-", "-"]
    figures = record.pooled.figures
    return [_number(figures.loss), _percent(figures.accuracy), _percent(figures.balanced_accuracy)]


def _costs(outcome: Outcome) -> str:
    rows = []
    for site in outcome.study.sites.all:
        mine = [row for record in outcome.rounds for row in record.sites if row.site == site]
        rows.append(
            [
                site,
                f"{sum(row.mib_down for row in mine):.1f}",
                f"{sum(row.mib_up for row in mine):.1f}",
                f"{sum(row.train_s for row in mine):.1f}",
                f"{sum(row.evaluate_s for row in mine):.1f}",
            ]
        )
    head = ["site", "MiB to the site", "MiB from the site", "seconds training", "seconds scoring"]
    return "\n\n".join(
        [
            "## What it cost",
            _table(head, rows),
            "MiB are those of the tensors. Sites work at the same time, so seconds do not add up over sites.",
        ]
    )


def _troubles(outcome: Outcome) -> str:
    rows = [
        [_round_name(record), row.site, row.outcome, _cell(row.reason)]
        for record in outcome.rounds
        for row in record.sites
        if row.outcome != "ok"
    ]
    if not rows:
        return "## What went wrong\n\nNothing: every site answered every round, and no update was refused."
    return "\n\n".join(
        [
            "## What went wrong",
            _table(["round", "site", "outcome", "reason"], rows, right=0),
            "*refused*: the update did not pass the server's checks and was left out. *failed*: the site said "
            "it could not; its own log tells why. *missing*: no answer before the deadline. *set_aside*: refused too "
            "often in a row, so it was not asked.",
        ]
    )


def _card(outcome: Outcome) -> str:
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
        "Intended use": "research only. Not a medical device: nobody may be diagnosed or treated by it.",
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
            _table(["training site", "training images a round", "rounds with its update"], rows),
        ]
    )


def _kind(study: StudyConfig) -> str:
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
            return f"the head and the last {_count(blocks.last_blocks, 'block')}"


def _algorithm(algorithm: Algorithm) -> str:
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


def _round_name(record: RoundRecord) -> str:
    return "closing" if record.closing else str(record.round)


def _sites(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _cell(text: str) -> str:
    """Text that cannot break out of its table cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int | None = None) -> str:
    """A Markdown table; the last `right` columns are to the right, all but the first by default."""
    num_right = len(head) - 1 if right is None else right

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = [":---"] * (len(head) - num_right) + ["---:"] * num_right
    return "\n".join([line(head), line(rule), *map(line, rows)])
