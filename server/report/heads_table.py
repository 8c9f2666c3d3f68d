"""The section of the report on classical heads beside the network's softmax."""

from common.config import StudyConfig
from common.config.heads import SOFTMAX
from common.heads import travelling
from common.heads.travelling import Travelling
from server.enrolment.census import Census
from server.heads.record import Cell, HeadTable, titles
from server.report.outcome import Outcome
from server.report.text import counted, escaped, listed, markdown_table, percent


def section(outcome: Outcome) -> list[str]:
    """All heads and sites in one table, and every figure for each site that only scores; nothing without heads."""
    table = outcome.heads
    if table is None:
        return []
    evaluate = outcome.study.sites.evaluate
    sites = list(table.cells)
    head = ["head", *(f"{site} (only scores)" if site in evaluate else site for site in sites)]
    rows = [[title, *(_head_cell(table.cells[site].get(title)) for site in sites)] for title in titles(table)]
    lines = [f"- {title} {_not_there(title)}: {escaped(reason)}." for title, reason in table.lacking.items()]
    lines += [f"- {site} had no part in {escaped(reason)}" for site, reason in table.problems.items()]
    never = outcome.never_there
    lines += [
        f"- {site} has no column: {escaped(never.get(site, 'it did not score the heads'))}."
        for site in outcome.study.sites.all
        if site not in table.cells and site not in table.problems and site not in table.together
    ]
    return [
        "\n\n".join(
            [
                f"## Classical heads on the features of the model after round {table.round}",
                markdown_table(head, rows),
                _head_legend(outcome.study, table, outcome.census),
                *(["\n".join(lines)] if lines else []),
                *_unseen(outcome.study, table),
            ]
        )
    ]


def _not_there(title: str) -> str:
    return "did not travel" if "@" in title else "could not be fitted"


_COLUMNS = (
    "images",
    "ACC",
    "BACC",
    "PRE",
    "REC",
    "F1",
    "AUC",
    "AVG of five",
    "AVG of six",
    "gain",
    "interval",
    "p",
)


def _unseen(study: StudyConfig, table: HeadTable) -> list[str]:
    """Every figure of every head on a site that took no part in the training."""
    parts = []
    for site in study.sites.evaluate:
        if site not in table.cells:
            continue
        rows = [
            [title, *_figures(table.cells[site].get(title))]
            for title in titles(table)
            if title not in table.lacking
        ]
        parts += [f"### Heads on {site}", markdown_table(["head", *_COLUMNS], rows)]
    if parts:
        parts.append(
            "Percent. PRE, REC and F1 are weighted by class size. The paper does not say what its AVG averages: five "
            "figures without the AUC, or six with it. *Gain*: balanced accuracy minus the softmax's, in points, with "
            "its 95 % interval; *p*: McNemar's exact test. All sites are in `heads.csv`."
        )
    return parts


def _figures(cell: Cell | None) -> list[str]:
    if cell is None or cell.problem or not cell.num_images:
        why = "-" if cell is None or not cell.problem else cell.problem.replace("_", " ")
        return [why, *["-"] * (len(_COLUMNS) - 1)]
    shares = (
        cell.accuracy, cell.balanced_accuracy, cell.precision_weighted, cell.recall_weighted, cell.f1_weighted,
        cell.auroc, cell.avg_acc_bacc_pre_rec_f1, cell.avg_acc_bacc_pre_rec_f1_auroc,
    )  # fmt: skip
    found = ["-" if share is None else percent(share) for share in shares]
    if cell.gain is None or cell.gain_low is None or cell.gain_high is None:
        return [str(cell.num_images), *found, "-", "-", "-"]
    ends = f"{100 * cell.gain_low:+.1f} to {100 * cell.gain_high:+.1f}"
    p = "-" if cell.mcnemar_p is None else f"{cell.mcnemar_p:.2g}"
    return [str(cell.num_images), *found, f"{100 * cell.gain:+.1f}", ends, p]


def _final(study: StudyConfig, table: HeadTable) -> str:
    """Which row the model predicts with."""
    title = study.final_head_title
    if title in table.lacking:
        return f"The study's final head, {title}, could not be fitted: its model predicts with the softmax."
    return f"**The study's model predicts with {title}** (`final_head`); the first row is the network's own softmax."


def _head_legend(study: StudyConfig, table: HeadTable, census: Census | None) -> str:
    shown = [title for title in titles(table) if title not in table.lacking and title != SOFTMAX]
    sentences = [
        "Balanced accuracy in percent; in brackets the gain over the network's own softmax on the same images, in "
        "points, with its 95 % interval over patients or lesions (over images where a site names none), and `*` where "
        "McNemar's exact test gives p < 0.05."
    ]
    if any(title.startswith("local.") for title in shown):
        sentences.append("*local*: each site's own head on its own test images.")
    sentences += _travelled(study, table, census)
    if any(title.startswith("federated.") for title in shown):
        sentences.append(
            "*federated*: one head for all, from sums, gradients or votes of the training sites."
        )
    if table.together:
        sentences.append(
            f"The sums and scores of {listed(table.together)} came under masks: the figures are of all of them "
            "together, and without intervals."
        )
    sentences += [_final(study, table)] if study.final_head != "softmax" else []
    sentences.append(f"Fitting and scoring took at most {counted(table.num_messages, 'message')} a site.")
    if len(shown) > 1:
        sentences.append("A table of many heads has some that look better by chance.")
    return " ".join(sentences)


def _travelled(study: StudyConfig, table: HeadTable, census: Census | None) -> list[str]:
    """Whose heads are scored elsewhere, what of patients left with them, and which classes they cannot answer."""
    trainers, sentences = study.sites.train, []
    owners = {
        head.title: [
            site for site in trainers if Travelling(name=head.title, owner=site).title not in table.lacking
        ]
        for head in travelling.asked(study.heads)
    }
    if len(trainers) == 1 and any(owners.values()):
        sentences.append(f"Heads of {trainers[0]} that travelled are scored at every site.")
    elif any(owners.values()):
        sentences.append("*NAME@SITE*: the own head of that site, on the images of every site.")
    for head in travelling.asked(study.heads):
        if travelling.holds_features(head) and owners[head.title]:
            sentences.append(
                f"With local.{head.title}, features of single patients left {', '.join(owners[head.title])}."
            )
    for site in trainers:
        counts = () if census is None or site not in census.sites else census.sites[site].train_counts
        unknown = [name for name, count in zip(study.classes, counts, strict=False) if not count]
        if unknown and any(site in sites for sites in owners.values()):
            sentences.append(
                f"{site} has no training image of {escaped(', '.join(unknown))}: its heads never answer that."
            )
    return sentences


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
