"""Why runs lack sums over test patients, from which differences get their intervals: by model and site.

A site does not say why it sends none, because its policy is its own affair. What the study settles and what follows
from the number of test images is known here; the rest is named as what it may be.
"""

from collections.abc import Sequence

from common.config import StudyConfig
from common.metrics.replicates import least_patients
from common.settings import load_settings
from server.report.comparison_row import Row
from server.report.text import counted, escaped, listed
from server.storage import intervals


def reasons(rows: Sequence[Row]) -> list[str]:
    """One sentence a reason, with the sites and models that it is true of, as Markdown. Raises StorageError."""
    models_by_reason = dict[str, list[str]]()
    for row in rows:
        for reason in _of_run(row):
            models_by_reason.setdefault(reason, []).append(row.variant)
    return [
        f"{reason} (models: {listed([escaped(model) for model in dict.fromkeys(models)])})."
        for reason, models in models_by_reason.items()
    ]


def _of_run(row: Row) -> list[str]:
    settings = row.run_dir / "study.yaml"
    tested = row.rounds[-1].test if row.rounds and row.failure is None else None
    if tested is None or not settings.exists():
        return []
    study = load_settings(settings, StudyConfig, "study")
    if (cause := _of_study(study)) is not None:
        return [f"The study asks no site for sums over patients: {cause}"]
    sent, least = intervals.load(row.run_dir).sites, least_patients(len(study.classes))
    found = []
    for site, scored in tested.sites.items():
        images = scored.figures.num_images
        if site in sent or not images:
            continue
        if images < least:
            found.append(
                f"{escaped(site)} tested {counted(images, 'image')}, and sums leave a site from {least} test patients "
                f"on, with {len(study.classes)} classes"
            )
        else:
            found.append(
                f"{escaped(site)} sent none: its {images} test images are of fewer than {least} patients, or its "
                "policy keeps sums back (`intervals`, `scores`, `min_score_cell`)"
            )
    return found


def _of_study(study: StudyConfig) -> str | None:
    """Setting for which the study asks for none; None if it asks."""
    if study.asks_for_intervals:
        return None
    if study.privacy is not None:
        return "it has `privacy`, and no noise is on these sums"
    if study.secure_aggregation is not None:
        return "it has `secure_aggregation`, and no masks are on these sums"
    return "it has `intervals: false`"
