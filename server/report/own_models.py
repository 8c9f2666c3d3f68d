"""The section of the report on models of the sites' own: global, personal and alone, site by site."""

from common.config import OwnModel
from server.report.outcome import Outcome
from server.report.text import markdown_table, percent
from server.storage.history import Scored, ScoredModel

_MEANINGS: dict[OwnModel, str] = {
    "personal": "each training site's own model, trained with the study's help",
    "alone": "a model that each site trained without the others, in as many rounds",
}


_OF_EACH_SITE = {
    "local": (
        "FedBN",
        "the study's model with each site's own normalisation layers (`model.batch_norm: local`)",
    ),
    "local_statistics": (
        "SiloBN",
        "the study's model with each site's own running means and variances (`model.batch_norm: local_statistics`)",
    ),
}
"""By `model.batch_norm`: name and meaning of a model that is one of each site's own."""


def section(outcome: Outcome) -> list[str]:
    """Nothing if the study has no such models. Under FedBN and SiloBN the study's model is one of each site's own."""
    record, of_each = outcome.final_record, _OF_EACH_SITE.get(outcome.study.model.batch_norm)
    if record is None or record.test is None or not (record.own or of_each):
        return []
    models: dict[str, ScoredModel] = {"global" if of_each is None else of_each[0]: record.test}
    models.update({str(name): model for name, model in record.own.items()})
    sites = [
        site for site in outcome.study.sites.train if any(site in model.sites for model in models.values())
    ]
    head = ["site", "images"]
    for figure in ("balanced accuracy", "F1, weighted"):
        head += [f"{figure}, {name}" for name in models]
    rows = [[site, *_row([model.sites.get(site) for model in models.values()])] for site in sites]
    if len(sites) > 1:
        rows.append(["**pooled, training sites**", *_row([_pooled(model) for model in models.values()])])
    meanings = {} if of_each is None else dict([of_each])
    meanings |= {str(name): text for name, text in _MEANINGS.items() if name in record.own}
    legend = " ".join(f"*{name}*: {text}." for name, text in meanings.items())
    return [
        "\n\n".join(
            [
                "## Global model and the sites' own",
                markdown_table(head, rows),
                f"Percent, each on the site's own test images. {legend} A pooled figure is over each site's own model.",
            ]
        )
    ]


def _pooled(model: ScoredModel) -> Scored:
    return model.pooled if model.pooled_training is None else model.pooled_training


def _row(scored: list[Scored | None]) -> list[str]:
    images = next((str(one.figures.num_images) for one in scored if one is not None), "-")
    balanced = ["-" if one is None else percent(one.figures.balanced_accuracy) for one in scored]
    f1 = ["-" if one is None else percent(one.figures.f1_weighted) for one in scored]
    return [images, *balanced, *f1]
