"""The section of the report on the outlier score: what it is made of, and from where on an image is flagged."""

from common.heads.outliers import OutlierRecord
from server.report.outcome import Outcome
from server.report.text import counted, listed, no_counts, percent

_WHAT = (
    "`consilium-site predict` gives each image an `outlier_score`: the Mahalanobis distance of its features to the "
    "nearest class mean of the training images, under one covariance (Lee et al. 2018), in units of how far training "
    "images are from the mean of their own class. A score beyond the limit says that an image is unlike the training "
    "images, so its probabilities mean little. A score below it does not say that the image is of one of the classes."
)


def section(outcome: Outcome) -> list[str]:
    """Nothing if the study does not ask for an outlier score."""
    if outcome.study.out_of_distribution is None:
        return []
    found = outcome.outliers
    if found is None:
        why = (
            "its sums are not on record; the section on heads says which sites answered"
            if outcome.is_closed
            else "it is made after the closing evaluation, which is not on record"
        )
        return [f"## Outlier score\n\nNone: {why}."]
    sentences = [
        f"Made of {found.num_train:.0f} training images, with {percent(found.shrinkage)} % of the covariance replaced "
        "by its mean variance.",
        _limit(found),
    ]
    if found.without:
        sentences.append(no_counts(found.without))
    return ["\n\n".join(["## Outlier score", " ".join(sentences), _WHAT])]


def _limit(found: OutlierRecord) -> str:
    if found.limit is None:
        return f"**No limit**: {found.why_none}."
    sites = listed(list(found.together or found.sites))
    return (
        f"Limit **{found.limit:.3g}**: at most {percent(found.flagged)} % of images like the "
        f"{counted(found.num_images, 'validation image')} of {sites} are beyond it."
    )
