"""ROC and precision over recall of every site, class by class, from the histograms that came with its score."""

import math

from common.metrics.thresholds import Histogram, roc
from server.report.html.charts import MOST_SERIES, Chart, Series, chart, kind_of
from server.report.html.figures import final_score, precision
from server.report.outcome import Outcome
from server.storage.last_scores import LastScores

MOST_CLASSES = 20
"""Beyond them the charts are too many."""
_SHARE = (0.0, 1.0)


def site_curves(outcome: Outcome, kept: LastScores) -> list[Chart]:
    """Two charts a class; empty if the sites' histograms are not kept, or the classes are too many."""
    scored, classes = final_score(outcome, kept), outcome.study.classes
    if scored is None or not scored.by_site or len(classes) > MOST_CLASSES:
        return []
    by_site = {site: histograms.of(len(classes)) for site, histograms in scored.by_site.items()}
    charts = []
    for place, name in enumerate(classes):
        there = {
            site: histogram_C2B[place]
            for site, histogram_C2B in by_site.items()
            if histogram_C2B[place].any(axis=1).all()
        }
        if there:
            charts += _of_class(outcome, name, place, there, scored.score.histogram_C2B[place])
    return charts


def _of_class(
    outcome: Outcome, name: str, place: int, by_site: dict[str, Histogram], pooled_2B: Histogram
) -> list[Chart]:
    evaluate, final, many = outcome.study.sites.evaluate, outcome.final, len(by_site) > MOST_SERIES
    titles = {site: f"{site} (only scores)" if site in evaluate else site for site in by_site}
    kinds = {site: "faint" if many else kind_of(number) for number, site in enumerate(by_site)}
    auroc = {
        site: math.nan if final is None else final.sites[site].figures.auroc_C[place] for site in by_site
    }
    in_words = ", ".join(f"{titles[site]} {value:.3f}" for site, value in auroc.items())
    note = f"{len(by_site)} sites, each a thin line." if many else ""
    return [
        chart(
            f"ROC of {name}",
            f"Sensitivity over 1 minus specificity of {name} against all others. AUROC: {in_words}.",
            [Series(titles[site], roc(histogram_2B), kinds[site]) for site, histogram_2B in by_site.items()]
            + [Series("pooled", roc(pooled_2B), "pooled"), Series("by chance", [(0, 0), (1, 1)], "ideal")],
            x_label="1 - specificity",
            y_label="sensitivity",
            x_range=_SHARE,
            y_range=_SHARE,
            note=note,
        ),
        chart(
            f"Precision over recall of {name}",
            f"Precision of {name} at every recall, for {len(by_site)} sites.",
            [
                Series(titles[site], precision(histogram_2B), kinds[site])
                for site, histogram_2B in by_site.items()
            ]
            + [Series("pooled", precision(pooled_2B), "pooled")],
            x_label="recall",
            y_label="precision",
            x_range=_SHARE,
            y_range=_SHARE,
            note=note,
        ),
    ]
