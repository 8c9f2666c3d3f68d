"""The section of the report on intervals over patients: every figure of the final test, by site and pooled."""

import math
from collections.abc import Mapping

from common.metrics.intervals import estimate
from server.report.outcome import Outcome
from server.report.text import counted, escaped, listed, markdown_table, percent
from server.storage.intervals import Figure, Intervals

TITLES: Mapping[str, str] = {
    "balanced_accuracy": "balanced accuracy",
    "f1_weighted": "F1, weighted",
    "f1_macro": "F1, macro",
    "auroc_macro": "AUROC",
    "accuracy": "accuracy",
    "avg_acc_bacc_pre_rec_f1": "AVG (ACC, BACC, PRE, REC, F1)",
    "avg_acc_bacc_pre_rec_f1_auroc": "AVG (the same and AUROC)",
}
"""Figures of the tables, by what they are called there."""

_LEGEND = (
    "Percent, with 95 % intervals over patients (lesions; images where neither is known): how far a figure would move "
    "if other patients of the same kind had been tested. Sites send sums over their patients, each with a random "
    "number that stays at the site, and the figures are linearised; the half width itself is right within about "
    "3.5 %. Training again with another seed would differ as well: that is not in it. `-`: no interval, because no "
    "patient differs from the others, or because the site sent no sums."
)


def section(outcome: Outcome) -> list[str]:
    """Nothing if the model was not tested, or no site sent sums over its patients."""
    found, final = outcome.intervals, outcome.final
    if found is None or not found.sites or final is None or final.side != "test":
        return []
    evaluate = outcome.study.sites.evaluate
    rows = []
    for site, scored in final.sites.items():
        here = found.sites.get(site)
        name = f"{escaped(site)} (only scores)" if site in evaluate else escaped(site)
        if here is None:
            rows.append([name, "-", *(percent(getattr(scored.figures, figure)) for figure in TITLES)])
        else:
            rows.append([name, str(here.num_patients), *_cells(here.figures)])
    rows.append(["**pooled**", _num_patients(found), *_cells(found.pooled)])
    return [
        "\n\n".join(
            [
                "## Intervals over patients",
                markdown_table(["site", "patients", *TITLES.values()], rows),
                *_without(found),
                _LEGEND,
            ]
        )
    ]


def with_interval(figure: Figure | None) -> str:
    """A figure in percent with its interval; a dash without one."""
    if figure is None:
        return "-"
    low, high = ends(figure)
    between = "-" if math.isnan(low) else f"{percent(low)} to {percent(high)}"
    return f"{percent(figure.value)} ({between})"


def ends(figure: Figure) -> tuple[float, float]:
    """The 95 % interval, as shares; NaN without one."""
    return estimate({0: figure.resampled}).interval()


def _cells(figures: Mapping[str, Figure]) -> list[str]:
    return [with_interval(figures.get(name)) for name in TITLES]


def _num_patients(found: Intervals) -> str:
    return "-" if found.without else str(sum(site.num_patients for site in found.sites.values()))


def _without(found: Intervals) -> list[str]:
    """Which sites sent nothing, and what that means for the pooled figures, as a paragraph."""
    if not found.without:
        return []
    each = listed([f"{escaped(site)} ({counted(number, 'image')})" for site, number in found.without.items()])
    return [
        f"Sent no sums over patients: {each}. Their policy keeps them back, or they have too few patients. In the "
        "pooled intervals each of these images counts as a patient, so these may be too narrow."
    ]
