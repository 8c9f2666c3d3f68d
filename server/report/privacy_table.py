"""Differential privacy in the report: how much noise the study has, and what it has cost each site's patients."""

from common.config import DpSgdConfig, NoisySums
from server.report.outcome import Outcome
from server.report.text import markdown_table


def section(outcome: Outcome) -> list[str]:
    """Epsilon by round and site; nothing for a study without privacy."""
    privacy = outcome.study.privacy
    if privacy is None:
        return []
    sites = outcome.study.sites.train
    rows = []
    for record in outcome.rounds:
        found = {row.site: row.epsilon for row in record.sites if row.epsilon is not None}
        if found:
            rows.append([str(record.round), *(_shown(found.get(site)) for site in sites)])
    paid = {} if outcome.heads is None else outcome.heads.epsilons
    if paid:
        rows.append(["heads", *(_shown(paid.get(site)) for site in sites)])
    said = [
        *([_of_gradients(privacy)] if outcome.study.rounds else []),
        *([] if privacy.heads is None else [_of_heads(privacy.heads)]),
        "Numbers of training images have noise too.",
        "No score of a training site left it."
        if privacy.scores is None
        else "Scores of training sites are of test patients, each counted once, with noise of "
        f"{privacy.scores.noise:g} on each cell of a confusion matrix, more by the root of the number of heads where "
        "several were scored. Their intervals do not have it, and cells below 0 were evened out. There is no AUROC, "
        "calibration or loss of them.",
    ]
    return [
        "\n\n".join(
            [
                "## Privacy",
                " ".join(said),
                markdown_table(["up to round", *(f"epsilon at {site}" for site in sites)], rows),
                f"Epsilon is of all of this study so far, at delta {privacy.delta:g}, for a patient of the site who "
                "is added or removed, as the site counts it. Other studies on the same patients are not in it.",
            ]
        )
    ]


def _of_gradients(privacy: DpSgdConfig) -> str:
    return (
        f"Gradients of a patient were shrunk to a length of {privacy.max_grad_norm:g}, and the sum of each step has "
        f"noise of {privacy.step_noise:g} times that (DP-SGD). Each patient was drawn with a chance of "
        f"{privacy.step_rate:g}, with {privacy.images_per_patient} image(s) at most."
    )


def _of_heads(heads: NoisySums) -> str:
    return (
        f"For the classical heads, features of an image were shrunk to a length of {heads.max_feature_norm:g}, and "
        f"the sums of all patients have noise of {heads.noise:g} times what one patient can change in them (Gaussian "
        "mechanism). A patient counts once there, with the mean of its images."
    )


def by_site(outcome: Outcome) -> dict[str, float]:
    """The last epsilon that each site has named, in the order of names."""
    found = {
        row.site: row.epsilon for record in outcome.rounds for row in record.sites if row.epsilon is not None
    }
    if outcome.heads is not None:
        found |= outcome.heads.epsilons
    return dict(sorted(found.items()))


def _shown(epsilon: float | None) -> str:
    return "-" if epsilon is None else f"{epsilon:.3g}"
