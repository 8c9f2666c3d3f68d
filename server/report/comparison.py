"""The comparison of a grid's studies: table, CSV and picture."""

import csv
import io
from pathlib import Path

from common.files import write_atomically
from server.config import SimulatedSites
from server.report import differences, plots
from server.report.comparison_row import Row
from server.report.text import escaped, markdown_table
from server.storage.history import curves


def write_comparison(folder: Path, rows: list[Row], federation: SimulatedSites) -> None:
    """One table and one picture over all runs."""
    table = [figures_of(row) for row in rows]
    columns = list(dict.fromkeys(name for line in table for name in line))
    banner = (
        ["**SYNTHETIC images: the figures say nothing about medicine.**", ""] if federation.synthetic else []
    )
    lines = [
        *banner,
        markdown_table(
            columns, [[escaped(line.get(column, "")) for column in columns] for line in table], right=0
        ),
    ]
    if not _are_scored_alike(rows):
        lines += ["", "**The runs were not all scored on the same test images.** " + _scored_by(rows)]
    lines += [line for section in differences.sections(rows) for line in ("", section)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(table)
    write_atomically(folder / "comparison.md", ("\n".join(lines) + "\n").encode())
    write_atomically(folder / "comparison.csv", text.getvalue().encode())
    lines_by_run = {
        f"{row.variant}, seed {row.seed}": [
            (model.after_round, model.pooled.figures.balanced_accuracy)
            for model in models
            # only rounds in which every site scored: a mean over fewer images is another figure
            if model.sites.keys() == models[-1].sites.keys()
        ]
        for row in rows
        for models in [curves(row.rounds, "validation")]
    }
    same = _are_scored_alike(rows)
    picture = plots.comparison(lines_by_run, folder, synthetic=federation.synthetic, same_images=same)
    write_atomically(folder / "comparison.png", picture)


def _scored(row: Row) -> dict[str, tuple[int, ...]]:
    """Test images by class of every site that scored the chosen model of a run that did not fail."""
    if row.failure is not None or not row.rounds or (tested := row.rounds[-1].test) is None:
        return {}
    return {site: tuple(map(sum, scored.confusion_CC)) for site, scored in tested.sites.items()}


def _are_scored_alike(rows: list[Row]) -> bool:
    """True if the figures of all runs that have some are of the same test images, as far as counts tell."""
    return len({tuple(sorted(scored.items())) for row in rows if (scored := _scored(row))}) <= 1


def _scored_by(rows: list[Row]) -> str:
    sites = list(dict.fromkeys(site for row in rows for site in _scored(row)))
    sentences = []
    for row in rows:
        scored = _scored(row)
        lacking = [site for site in sites if site not in scored]
        if scored:
            without = f", not by {', '.join(lacking)}" if lacking else ""
            number = sum(sum(counts) for counts in scored.values())
            sentences.append(f"{row.variant}, seed {row.seed}: {number} images{without}.")
    return " ".join(sentences)


def figures_of(row: Row) -> dict[str, str]:
    """One line of the table: the chosen weights on test images, pooled and balanced accuracy by site."""
    line = {"variant": row.variant, "seed": str(row.seed)}
    last = row.rounds[-1].test if row.rounds else None
    if row.failure is not None or last is None:
        return line | {"outcome": f"failed: {row.failure or 'no scores'}"}
    pooled = last.pooled.figures
    return (
        line
        | {
            "outcome": f"finished, incomplete: {row.lacking}" if row.lacking else "finished",
            "rounds": str(last.after_round),
            "balanced accuracy": f"{pooled.balanced_accuracy:.3f}",
            "weighted F1": f"{pooled.f1_weighted:.3f}",
            "accuracy": f"{pooled.accuracy:.3f}",
            "AUROC": f"{pooled.auroc_macro:.3f}",
            "AVG of ACC BACC PRE REC F1": f"{pooled.avg_acc_bacc_pre_rec_f1:.3f}",
            "AVG with AUROC": f"{pooled.avg_acc_bacc_pre_rec_f1_auroc:.3f}",
        }
        | {
            f"balanced accuracy {site}": f"{scored.figures.balanced_accuracy:.3f}"
            for site, scored in last.sites.items()
        }
        | {"minutes": f"{sum(record.seconds for record in row.rounds) / 60:.1f}"}
    )
