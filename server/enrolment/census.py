"""Census of the sites' images before round 1: counts per class and side, image sizes, channel means.

It is made from the enrolments alone or, with secure aggregation, from a masked sum of the sites' counts
(`masked_census.py`). It is shown to the operator and saved in the run's folder for the report. It also decides whether
the study makes sense: a class that no site has is probably misspelt, and a class that no site trains on can never be
learnt.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from common.config import StudyConfig
from common.errors import ConfigError
from common.files import read_json, write_json
from common.settings import Frozen
from common.wire import ImageSummary
from server.state import Totals

if TYPE_CHECKING:  # loads Flower, which a report does without
    from common.wire import Enrolment

FILE = "census.json"


class SiteCensus(Frozen):
    """Counts and image summary of one site's enrolment."""

    train_counts: tuple[int, ...]
    validation_counts: tuple[int, ...] = ()
    """Empty: on record by a version without validation images."""
    test_counts: tuple[int, ...]
    withheld: bool
    """Its policy leaves small classes, or all scores, out: a 0 may stand for a few images."""
    images: ImageSummary | None


class Census(Frozen):
    """Counts and image summaries of all sites' enrolments."""

    classes: tuple[str, ...]
    sites: dict[str, SiteCensus]
    """Sites that take part, training sites first; empty under masks."""
    totals: Totals | None = Field(default=None, exclude_if=lambda totals: totals is None)
    """With secure aggregation: the sums of the sites' counts; else None."""
    withholding: tuple[str, ...] = Field(default=(), exclude_if=lambda sites: not sites)
    """Under masks: sites whose policy leaves small classes, or all scores, out."""

    def trained_on(self, sites: Collection[str]) -> list[tuple[int, ...]]:
        """Training images by class of each of these sites; under masks, of all sites together."""
        if self.totals is not None:
            return [self.totals.train_counts]
        return [site.train_counts for name, site in self.sites.items() if name in sites]


def count(study: StudyConfig, enrolments: "Mapping[str, Enrolment]", totals: Totals | None = None) -> Census:
    """The census of these enrolments; `totals` are the sums of their counts, which then have masks."""
    if totals is not None:
        withholding = tuple(site for site, enrolment in sorted(enrolments.items()) if enrolment.withheld)
        return Census(classes=study.classes, sites={}, totals=totals, withholding=withholding)
    return Census(
        classes=study.classes,
        sites={
            site: SiteCensus(
                train_counts=enrolment.train_counts,
                validation_counts=enrolment.validation_counts,
                test_counts=enrolment.test_counts,
                withheld=enrolment.withheld,
                images=enrolment.images,
            )
            for site in study.sites.all
            if (enrolment := enrolments.get(site)) is not None
        },
    )


def require_classes(study: StudyConfig, census: Census) -> None:
    """Raises ConfigError that names every class that no site has, or no site trains on."""
    trains = study.rounds > 0 or study.heads is not None
    untrained = _without(study, census.trained_on(study.sites.train)) if trains else []
    held: list[SiteCensus | Totals] = [*census.sites.values()]
    held += [] if census.totals is None else [census.totals]
    nowhere = _without(study, [(*s.train_counts, *s.validation_counts, *s.test_counts) for s in held])
    sentences = []
    if nowhere:
        sentences.append(
            f"no site has images of {', '.join(nowhere)}: check how the study and the sites spell it (label_map), "
            "name a site that has some, or take the class out of the study"
        )
    if only_tested := [name for name in untrained if name not in nowhere]:
        sentences.append(
            f"no training site has training images of {', '.join(only_tested)}, so the model can never learn it: "
            "name a training site that has some, or take the class out of the study"
        )
    if not sentences:
        return
    hiding = [name for name, site in census.sites.items() if site.withheld]
    if hiding := [*hiding, *census.withholding]:
        sentences.append(f"{', '.join(hiding)} may have a few that the policy there leaves out")
    sentences = ["; ".join(sentences), "To begin without such a class, name it in untrained_classes."]
    raise ConfigError(f"study {study.name} cannot begin: {'. '.join(sentences)}")


def _without(study: StudyConfig, counts: Sequence[Sequence[int]]) -> list[str]:
    """Classes that none of these has and that are needed; counts may be those of several sides, one after the other."""
    num = len(study.classes)
    return [
        name
        for place, name in enumerate(study.classes)
        if name not in study.untrained_classes and not any(sum(c[place::num]) for c in counts)
    ]


def with_earlier(study: StudyConfig, now: Census, run_dir: Path, after_round: int) -> Census:
    """`now`, and what is on record of sites that were there before the study was resumed `after_round`.

    They may have trained the weights that the study goes on from. Raises StorageError.
    """
    before = load(run_dir) if after_round else None
    if before is None or before.classes != now.classes:
        return now
    known = before.sites | now.sites
    return now.model_copy(update={"sites": {site: known[site] for site in study.sites.all if site in known}})


# --- file --------------------------------------------------------------------------------------


def save(run_dir: Path, census: Census) -> None:
    """Write it to the run's folder. Raises StorageError."""
    write_json(run_dir / FILE, census)


def load(run_dir: Path) -> Census | None:
    """What is on record, None if nothing is. Raises StorageError."""
    return read_json(run_dir / FILE, Census)
