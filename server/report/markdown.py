"""The report as text, written for the people of a hospital rather than for those of this code.

It answers, in this order: how good is the final model, for whom, where does it err, how did it
get there, what did it cost, what went wrong, and what is it not for. Shares are in percent, as
the field prints them. The two readings of the paper's AVG carry names that say which is which,
because the paper (arXiv:2505.23040) does not say which one it prints.
"""

import math

from common.config import StudyConfig
from common.metrics import NUM_BINS
from server.enrolment import validation_classes
from server.enrolment.census import Census
from server.report import (
    calibration_table,
    census_table,
    heads_table,
    intervals_table,
    outliers_table,
    overlap_text,
    own_models,
    privacy_table,
    subgroup_table,
)
from server.report.model_card import model_card
from server.report.opening import opening
from server.report.outcome import Outcome
from server.report.text import counted, decimal, escaped, listed, markdown_table, percent
from server.report.troubles import troubles
from server.rounds.scores import why_silent
from server.storage.history import Scored, ScoredModel

_LEGEND = (
    "Percent, except images and loss (cross-entropy, nats per image). *Pooled* counts every image of "
    "the sites in the table once; it is not the mean of the rows above. *Balanced accuracy* is the mean recall over "
    "the classes present. *Weighted* means by the number of images of a class; weighted recall equals accuracy. "
    "*AUROC* is one-vs-rest, mean over classes, from score histograms. *ECE* is the expected calibration "
    "error over 15 bins. *AVG* is what the paper calls so; it can be read in two ways, hence two columns. "
    "The interval takes images as independent, so it is too narrow where a patient has several. `-`: there is no "
    "such figure, because there are no images for it, or because the loss is not a finite number."
)


def markdown(outcome: Outcome) -> str:
    """The whole report."""
    return "\n\n".join(sections(outcome).values()) + "\n"


def sections(outcome: Outcome) -> dict[str, str]:
    """The report's sections by a short name, in their order; each but the first begins with its heading."""
    found = {
        "opening": [opening(outcome)],
        "images": _data(outcome),
        "model": [_figures(outcome)],
        "intervals": intervals_table.section(outcome),
        "confusion": [_confusion(outcome)],
        "classes": [_classes(outcome)],
        "subgroups": subgroup_table.section(outcome),
        "calibration": calibration_table.section(outcome),
        "outliers": outliers_table.section(outcome),
        "own": own_models.section(outcome),
        "heads": heads_table.section(outcome),
        "rounds": [_rounds(outcome)],
        "privacy": privacy_table.section(outcome),
        "cost": [_costs(outcome)],
        "troubles": [troubles(outcome)],
        "card": [model_card(outcome)],
    }
    return {name: text for name, texts in found.items() for text in texts}


def _data(outcome: Outcome) -> list[str]:
    """What the sites hold, and whether those that only score are unseen; nothing if neither is known."""
    unseen = overlap_text.paragraphs(
        outcome.study, outcome.overlap, trained=outcome.trained, absent=outcome.never_there
    )
    if outcome.census is None:
        return ["\n\n".join(["## The sites' images", *unseen])] if unseen else []
    if away := [site for site in outcome.never_there if site not in outcome.census.sites]:
        unseen = [f"Not in the table, because they took no part: {listed(away)}.", *unseen]
    deciding = _deciding(outcome) if outcome.study.selection else ()
    classes = validation_classes.paragraph(outcome.study, outcome.census, deciding)
    unseen = [*_without_validation(outcome.study, outcome.census), *map(escaped, classes), *unseen]
    head, body, foot = census_table.cells(outcome.study, outcome.census)
    rows = markdown_table(head, [*body, *foot])
    return [
        "\n\n".join(
            [
                "## The sites' images",
                rows,
                f"{census_table.notes(outcome.census)}.",
                *unseen,
            ]
        )
    ]


def _without_validation(study: StudyConfig, census: Census) -> list[str]:
    """Who has no validation images, and what that means, as a paragraph."""
    lacking = census_table.without_validation(study, census)
    if census.totals is not None and not sum(census.totals.validation_counts):
        return ["No site has validation images, so no round was scored on any."]
    if not lacking:
        return []
    if not any(sum(site.validation_counts) for site in census.sites.values()):
        return ["No site has validation images, so no round was scored on any."]
    means = "The study chooses by others." if study.selection else "The others score the rounds."
    return [f"{counted(len(lacking), 'training site')} without validation images: {listed(lacking)}. {means}"]


def _figures(outcome: Outcome) -> str:
    final = outcome.final
    if final is None:
        return "## The final model\n\nNo site scored the model: there are no figures to report."
    evaluate = outcome.study.sites.evaluate
    rows = [
        [f"{site} (only scores)" if site in evaluate else site, *_row(scored)]
        for site, scored in final.sites.items()
    ]
    rows.append(["**pooled only**" if final.pooled_only else "**pooled**", *_row(final.pooled)])
    if final.pooled_training is not None:
        rows.append(["**pooled, training sites**", *_row(final.pooled_training)])
    planned, after = outcome.study.rounds, final.after_round
    early = "" if after >= planned else f", of {planned} planned"
    head = [
        "site", "images", "accuracy (95 % interval)", "balanced accuracy", "precision, weighted",
        "F1, weighted", "F1, macro", "AUROC", "ECE", "loss", "AVG (ACC, BACC, PRE, REC, F1)",
        "AVG (the same and AUROC)",
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"## The model after round {after}{early}"
            if after
            else "## The model before training"
            if planned
            else "## The model",
            *_selected(outcome, final),
            _which_images(outcome, final),
            markdown_table(head, rows),
            *_pooled_only(final),
            *_not_in_the_table(outcome, final),
            *_coarse(final.pooled),
            *_left_out(outcome, final),
            _LEGEND,
        ]
    )


def _which_images(outcome: Outcome, final: ScoredModel) -> str:
    """What the figures are of, and what else was done with those images, as a paragraph."""
    if final.side == "validation":
        if outcome.study.selection is None:
            return "**The figures are of validation images: no test images were scored.**"
        return (
            "**The figures are of validation images, by which the study chooses: no test images were scored.** They "
            "look better than the model is."
        )
    if any(record.test is not None for record in outcome.rounds if not record.closing):
        return (
            "The figures are of test images. **They were scored in the rounds as well, for the curves.** Nothing was "
            "chosen by them in this study."
        )
    return "The figures are of test images, which were scored once, with these weights."


def _pooled_only(final: ScoredModel) -> list[str]:
    """Why no site has a row, as a paragraph."""
    if not final.pooled_only:
        return []
    return [
        f"Pooled only: the scores of {listed(final.pooled_only)} came under masks, so each site alone knows its own "
        "figures, and the server cannot compare a site's counts with its images."
    ]


def _not_in_the_table(outcome: Outcome, final: ScoredModel) -> list[str]:
    """Sites without a row, each with the reason, and rounds that nothing scored, as paragraphs."""
    paragraphs, never = [], outcome.never_there
    record = outcome.final_record
    rows = {row.site: row for row in record.sites} if record is not None else {}
    there = {*final.sites, *final.pooled_only}
    lacking = [site for site in outcome.study.sites.all if site not in there]
    if lacking:
        each = "; ".join(
            f"{site} ({escaped(never[site] if site in never else why_silent(rows.get(site)))})"
            for site in lacking
        )
        paragraphs.append(f"Not in the table: {each}.")
    if outcome.num_rounds > final.after_round and not outcome.is_closed:
        paragraphs.append(
            f"These are the last scores on record. The model after round {outcome.num_rounds} was not scored."
        )
    return paragraphs


def _coarse(pooled: Scored) -> list[str]:
    """What it means that sites round their probabilities, as a paragraph."""
    if pooled.num_bins == NUM_BINS:
        return []
    return [
        f"Sites round every probability to the middle of one of {pooled.num_bins} bins before it is counted. AUROC, "
        f"ECE and loss are as coarse as a bin, {1 / pooled.num_bins:g} wide. The other figures are exact."
    ]


def _left_out(outcome: Outcome, final: ScoredModel) -> list[str]:
    """Images that are not counted because too few patients had such a result, as a paragraph."""
    known = final.sites or {"all sites": final.pooled}
    by_site = {site: sum(scored.left_out_C) for site, scored in known.items() if any(scored.left_out_C)}
    if not by_site:
        return []
    each = ", ".join(f"{site} {number}" for site, number in by_site.items())
    classes = ", ".join(
        f"{name} {number}"
        for name, number in zip(outcome.study.classes, final.pooled.left_out_C, strict=True)
        if number
    )
    left_out, f = sum(by_site.values()), final.pooled.figures
    right, images = round(f.accuracy * f.num_images) if f.num_images else 0, f.num_images + left_out
    return [
        f"{left_out} of {images} {final.side} images are in no figure ({each}; {classes}): the policy of their site "
        "leaves out what fewer patients than it says share, a true class and a predicted one, and as much more that "
        "no sum shows it. These are mostly errors, so the figures look better than the model is. With these images the "
        f"pooled accuracy lies between {percent(right / images)} and {percent((right + left_out) / images)} percent. "
        "Probabilities are medians of small groups of patients there."
    ]


def _selected(outcome: Outcome, final: ScoredModel) -> list[str]:
    """What the study's selection came to, as paragraphs."""
    study, record = outcome.study, outcome.final_record
    best = None if record is None else record.best
    if study.selection is None:
        return []
    metric, deciding = study.selection.metric, _deciding(outcome)
    if best is None:
        return [
            f"No round was chosen by {metric}: that takes the scores of {listed(deciding)} in one round, and no round "
            "has all of them. The weights are those of the last round."
        ]
    model = f"of the model after round {best.round}" if best.round else "of the model before training"
    sentences = [
        f"The best {metric} on the validation images of {listed(deciding)} was {best.value:.4f}, {model}."
    ]
    if not best.round:
        sentences.append(
            "No round made a better one, so there is no `best.safetensors`; the weights are those of the last round."
        )
    elif outcome.is_closed:
        sentences.append("Its weights are in `best.safetensors`.")
    else:
        sentences.append("Its weights are in `checkpoints/best.safetensors`.")
    if best.round not in (0, final.after_round):
        sentences.append(f"The figures below are of another model, that after round {final.after_round}.")
    sentences.append("The best of several looks better than it is on the images that chose it.")
    return [" ".join(sentences)]


def _deciding(outcome: Outcome) -> list[str]:
    """Sites by whose validation images the study chooses."""
    study = outcome.study
    if study.selection is not None and study.selection.sites is not None:
        return list(study.selection.sites)
    without = [] if outcome.census is None else census_table.without_validation(study, outcome.census)
    return [site for site in study.sites.train if site not in without]


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
    if final is None:
        return "## Confusion matrix\n\nNone: no scores are available."
    rows = [
        [f"**{name}**", *map(str, counts)]
        for name, counts in zip(outcome.study.classes, final.pooled.confusion_CC, strict=True)
    ]
    return "\n\n".join(
        [
            "## Confusion matrix, pooled",
            f"{final.side.capitalize()} images by true class (row) and by what the model said (column).",
            markdown_table(["true \\ predicted", *outcome.study.classes], rows),
            "![Confusion matrix](confusion.png)",
        ]
    )


def _classes(outcome: Outcome) -> str:
    final = outcome.final
    if final is None:
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


def _rounds(outcome: Outcome) -> str:
    if not outcome.rounds:
        return "## Rounds\n\nNone: no round is on record."
    scored = {model.after_round: model for model in outcome.curves}
    side = outcome.curves[-1].side if outcome.curves else outcome.study.curves_on
    first = scored.get(0)
    rows = []
    if first is not None:  # of a CLIP, what its authors call zero-shot
        rows.append(["0, before training", "-", "-", "-", *_scored_as(first), "-"])
    for record in outcome.rounds:
        if record.closing:
            continue  # the closing evaluation scores the model of the last row
        trained = [site for site in record.sites if site.trained]
        num_images = sum(site.num_examples for site in trained)
        with_loss = [site for site in trained if site.train_loss is not None]
        loss_sum = sum(site.num_examples * (site.train_loss or 0.0) for site in with_loss)
        num_with_loss = sum(site.num_examples for site in with_loss)
        rows.append(
            [
                str(record.round),
                str(len(trained)),
                "-" if any(site.masked for site in trained) else str(num_images),
                decimal(loss_sum / num_with_loss if num_with_loss else math.nan),
                *_scored_as(scored.get(record.round)),
                f"{record.seconds:.1f}",
            ]
        )
    head = [
        "round", "sites that trained", "images", "training loss", f"{side} loss after it, pooled", "accuracy",
        "balanced accuracy", "seconds",
    ]  # fmt: skip
    parts = ["## Rounds", markdown_table(head, rows)]
    pools = {frozenset(model.sites) for model in outcome.curves}
    if len(pools) > 1:
        parts.append(
            "*Pooled* is over the sites that scored the model of the row. They are not the same in all rows, so the "
            "rows cannot be compared image by image."
        )
    return "\n\n".join([*parts, "![Curves over the rounds](curves.png)"])


def _scored_as(model: ScoredModel | None) -> list[str]:
    """Loss, accuracy and balanced accuracy over all sites that scored one model."""
    if model is None:
        return ["-", "-", "-"]
    figures = model.pooled.figures
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
            " ".join(_cost_notes(outcome)),
        ]
    )


def _cost_notes(outcome: Outcome) -> list[str]:
    notes = ["MiB are those of the tensors that were sent in the rounds on record."]
    if any(record.attempts > 1 for record in outcome.rounds):
        notes.append("Of a round that was repeated, a site's last attempt counts.")
    lost = [row for record in outcome.rounds for row in record.sites if row.outcome in ("failed", "missing")]
    if any(row.mib_down for row in lost):
        notes.append("A site that failed or did not answer may not have fetched what was sent to it.")
    if outcome.resumed_after:
        notes.append("A round that was done again counts once.")
    if outcome.heads is not None:
        notes.append("Messages for the classical heads are not in it.")
    return [*notes, "Sites work at the same time, so seconds do not add up over sites."]
