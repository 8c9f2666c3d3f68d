"""The report as text, written for the people of a hospital rather than for those of this code.

It answers, in this order: how good is the final model, for whom, where does it err, how did it
get there, what did it cost, what went wrong, and what is it not for. Shares are in percent, as
the field prints them. The two readings of the paper's AVG carry names that say which is which,
because the paper (arXiv:2505.23040) does not say which one it prints.
"""

import math

from common.config import (
    StudyConfig,
)
from server.heads.record import Cell, titles
from server.report import census_table, overlap_text
from server.report.model_card import algorithm_name, model_card, model_kind
from server.report.outcome import Outcome
from server.report.plots import SYNTHETIC
from server.report.text import counted, decimal, escaped, listed, markdown_table, percent
from server.storage.history import RoundRecord, Scored

_LEGEND = (
    "Percent, except images and loss (cross-entropy, nats per image). *Pooled* counts every test image of "
    "every site once; it is not the mean of the rows above. *Balanced accuracy* is the mean recall over the "
    "classes present. *Weighted* means by the number of images of a class; weighted recall equals accuracy. "
    "*AUROC* is one-vs-rest, mean over classes, from score histograms. *ECE* is the expected calibration "
    "error over 15 bins. *AVG* is what the paper calls so; it can be read in two ways, hence two columns. "
    "The interval takes images as independent, so it is too narrow where a patient has several. `-`: the "
    "images cannot say, e.g. because there are no test images."
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
        model_card(outcome),
    ]
    return "\n\n".join(sections) + "\n"


def _title(outcome: Outcome) -> str:
    study = outcome.study
    lines = [f"# {study.name}"]
    if outcome.synthetic:
        lines += [f"> **{SYNTHETIC.capitalize()}.**"]
    local = study.local
    amount = f"{local.steps} steps" if local.num_epochs is None else counted(local.num_epochs, "epoch")
    batch = "all images of a site at once" if local.batch_size == "all" else f"{local.batch_size} images"
    lines += [
        f"{model_kind(study)} for {len(study.classes)} classes "
        f"({', '.join(study.classes)}) was trained by {counted(len(study.sites.train), 'site')} in "
        f"{counted(study.rounds, 'round')}, while every image stayed at its site.",
        f"Each round, {listed(study.sites.train)} trained {amount} with {local.optimizer.kind}, "
        f"learning rate {local.optimizer.lr:g}, in batches of {batch}. The server joined the results by "
        f"{algorithm_name(study.algorithm)}."
        + (
            f" {listed(study.sites.evaluate)} never trained and only scored the model: "
            "images from where nothing was learnt."
            if study.sites.evaluate
            else ""
        ),
    ]
    return "\n\n".join(lines)


def _data(outcome: Outcome) -> list[str]:
    """What the sites hold, and whether those that only score are unseen; nothing if neither is known."""
    unseen = overlap_text.paragraphs(outcome.study, outcome.overlap)
    if outcome.census is None:
        return ["\n\n".join(["## The sites' images", *unseen])] if unseen else []
    head, body, foot = census_table.cells(outcome.study, outcome.census)
    rows = markdown_table(head, [*body, *foot])
    return [
        "\n\n".join(
            [
                "## The sites' images",
                rows,
                f"{census_table.NOTES[0].upper()}{census_table.NOTES[1:]}.",
                *unseen,
            ]
        )
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
            markdown_table(head, rows),
            _LEGEND,
        ]
    )


def _selected(study: StudyConfig, final: RoundRecord) -> list[str]:
    """What the study's selection came to, as paragraphs."""
    selection, best = study.selection, final.best
    if selection is None or best is None:
        return []
    chosen_by = listed(selection.sites or study.sites.all)
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
    accuracy = "-" if math.isnan(f.accuracy) else f"{percent(f.accuracy)} ({percent(low)} to {percent(high)})"
    return [
        str(f.num_images),
        accuracy,
        percent(f.balanced_accuracy),
        percent(f.precision_weighted),
        percent(f.f1_weighted),
        percent(f.f1_macro),
        percent(f.auroc_macro),
        percent(f.ece),
        decimal(f.loss),
        percent(f.avg_acc_bacc_pre_rec_f1),
        percent(f.avg_acc_bacc_pre_rec_f1_auroc),
    ]


def _confusion(outcome: Outcome) -> str:
    final = outcome.final
    if final is None or final.pooled is None:
        return "## Confusion matrix\n\nNone: no scores are available."
    rows = [
        [f"**{name}**", *map(str, counts)]
        for name, counts in zip(outcome.study.classes, final.pooled.confusion_CC, strict=True)
    ]
    return "\n\n".join(
        [
            "## Confusion matrix, pooled",
            "Test images by true class (row) and by what the model said (column).",
            markdown_table(["true \\ predicted", *outcome.study.classes], rows),
            "![Confusion matrix](confusion.png)",
        ]
    )


def _classes(outcome: Outcome) -> str:
    final = outcome.final
    if final is None or final.pooled is None:
        return "## Per class\n\nNone: no scores are available."
    f = final.pooled.figures
    rows = [
        [name, str(support), *map(percent, values)]
        for name, support, *values in zip(
            outcome.study.classes, f.support_C, f.recall_C, f.precision_C, f.f1_C, f.auroc_C, strict=True
        )
    ]
    head = ["class", "images", "recall", "precision", "F1", "AUROC"]
    return f"## Per class, pooled\n\n{markdown_table(head, rows)}"


def _heads(outcome: Outcome) -> list[str]:
    """Classical heads beside the softmax: one table."""
    table = outcome.heads
    if table is None:
        return []
    evaluate = outcome.study.sites.evaluate
    sites = list(table.cells)
    head = ["head", *(f"{site} (only scores)" if site in evaluate else site for site in sites)]
    rows = [[title, *(_head_cell(table.cells[site].get(title)) for site in sites)] for title in titles(table)]
    lines = [f"- {title} could not be fitted: {escaped(reason)}." for title, reason in table.lacking.items()]
    lines += [f"- {site} had no part in {escaped(reason)}" for site, reason in table.problems.items()]
    return [
        "\n\n".join(
            [
                f"## Classical heads on the features of the model after round {table.round}",
                markdown_table(head, rows),
                "Balanced accuracy in percent; in brackets the gain over the network's own softmax on the same "
                "images, in points, with its 95 % interval over patients or lesions, and `*` where McNemar's exact "
                "test gives p < 0.05. *local*: each site's own head on its own test images. *federated*: one head for "
                f"all, fitted in {table.num_messages} messages a site from sums and gradients. A table of many heads "
                "has some that look better by chance.",
                *(["\n".join(lines)] if lines else []),
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
    value = percent(cell.balanced_accuracy)
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
                decimal(loss_sum / num_images if num_images else math.nan),
                *_scored_as(scored.get(record.round)),
                f"{record.seconds:.1f}",
            ]
        )
    head = [
        "round", "sites that trained", "images", "training loss", "test loss after it, pooled", "accuracy",
        "balanced accuracy", "seconds",
    ]  # fmt: skip
    return "\n\n".join(["## Rounds", markdown_table(head, rows), "![Curves over the rounds](curves.png)"])


def _scored_as(record: RoundRecord | None) -> list[str]:
    """Loss, accuracy and balanced accuracy of the pooled test in one round's scores."""
    if record is None or record.pooled is None:
        return ["-", "-", "-"]
    figures = record.pooled.figures
    return [decimal(figures.loss), percent(figures.accuracy), percent(figures.balanced_accuracy)]


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
            markdown_table(head, rows),
            "MiB are those of the tensors. Sites work at the same time, so seconds do not add up over sites.",
        ]
    )


def _troubles(outcome: Outcome) -> str:
    rows = [
        [_round_name(record), row.site, row.outcome, escaped(row.reason)]
        for record in outcome.rounds
        for row in record.sites
        if row.outcome != "ok"
    ]
    if not rows:
        return "## What went wrong\n\nNothing: every site answered every round, and no update was refused."
    return "\n\n".join(
        [
            "## What went wrong",
            markdown_table(["round", "site", "outcome", "reason"], rows, right=0),
            "*refused*: the update did not pass the server's checks and was left out. *failed*: the site said "
            "it could not; its own log tells why. *missing*: no answer before the deadline. *set_aside*: refused too "
            "often in a row, so it was not asked.",
        ]
    )


def _round_name(record: RoundRecord) -> str:
    return "closing" if record.closing else str(record.round)
