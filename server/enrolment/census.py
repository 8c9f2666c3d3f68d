"""What the sites of a study hold, in one table, before a round is spent on it.

Made from the enrolments alone: counts per class and side, image sizes, channel means. It is shown,
kept in the run's folder for the report, and it decides whether the study makes sense: a class
that nobody has is a misspelt class, and one that nobody trains on can never be learnt.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import StudyConfig
from common.errors import ConfigError, StorageError
from common.metrics.pooling import aligned
from common.settings import Frozen
from common.summary import ImageSummary
from common.weights import write_atomically

if TYPE_CHECKING:  # loads Flower, which a report does without
    from common.wire import Enrolment

FILE = "census.json"

NOTES = (
    "training / test images; `-`: none, or fewer than the site's policy lets be counted (sites marked ~, whose "
    "pixels are those that enough patients share); *: only scores; means and deviations of red, green, blue in 0-1"
)


class SiteCensus(Frozen):
    """What one site enrolled with."""

    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    withheld: bool
    """Its policy leaves small classes, or all scores, out: a 0 may stand for a few images."""
    images: ImageSummary | None


class Census(Frozen):
    """What all sites enrolled with."""

    classes: tuple[str, ...]
    sites: dict[str, SiteCensus]
    """Those that take part, training ones first."""


def count(study: StudyConfig, enrolments: "Mapping[str, Enrolment]") -> Census:
    """The census of these enrolments."""
    return Census(
        classes=study.classes,
        sites={
            site: SiteCensus(
                train_counts=enrolment.train_counts,
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
    trainers = [site for name, site in census.sites.items() if name in study.sites.train]
    untrained = _without(study, [site.train_counts for site in trainers])
    nowhere = _without(study, [(*s.train_counts, *s.test_counts) for s in census.sites.values()])
    told = []
    if nowhere:
        told.append(
            f"no site has images of {', '.join(nowhere)}: check how the study and the sites spell it (label_map), "
            "name a site that has some, or take the class out of the study"
        )
    if only_tested := [name for name in untrained if name not in nowhere]:
        told.append(
            f"no training site has training images of {', '.join(only_tested)}, so the model can never learn it: "
            "name a training site that has some, or take the class out of the study"
        )
    if not told:
        return
    if hiding := [name for name, site in census.sites.items() if site.withheld]:
        told.append(f"{', '.join(hiding)} may have a few that the policy there leaves out")
    told = ["; ".join(told), "To begin without such a class, name it in untrained_classes."]
    raise ConfigError(f"study {study.name} cannot begin: {'. '.join(told)}")


def _without(study: StudyConfig, counts: Sequence[Sequence[int]]) -> list[str]:
    """Classes that none of these has and that are needed; counts may be those of both sides, one after the other."""
    num = len(study.classes)
    return [
        name
        for place, name in enumerate(study.classes)
        if name not in study.untrained_classes and not any(sum(c[place::num]) for c in counts)
    ]


# --- the table ---------------------------------------------------------------------------------


def table(study: StudyConfig, census: Census) -> str:
    """For the terminal: a row a site, a column a class."""
    head, body, foot = cells(study, census)
    return f"what the sites hold\n{aligned(head, body, foot)}\n{NOTES}"


def cells(study: StudyConfig, census: Census) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Head, a row a site, and the row of all sites."""
    head = ["site", *census.classes, "all", "pixels", "mean", "deviation"]
    body = [
        [
            name + "~" * site.withheld + " *" * (name in study.sites.evaluate),
            *map(_pair, site.train_counts, site.test_counts),
            _pair(sum(site.train_counts), sum(site.test_counts)),
            *_looks(site.images),
        ]
        for name, site in census.sites.items()
    ]
    train = [sum(counts) for counts in zip(*(s.train_counts for s in census.sites.values()), strict=True)]
    test = [sum(counts) for counts in zip(*(s.test_counts for s in census.sites.values()), strict=True)]
    foot = ["all", *map(_pair, train, test), _pair(sum(train), sum(test)), "", "", ""]
    return head, body, [foot]


def _pair(train: int, test: int) -> str:
    return f"{train or '-'} / {test or '-'}"


def _looks(images: ImageSummary | None) -> list[str]:
    if images is None:
        return ["-", "-", "-"]
    shares = [" ".join(f"{value:.2f}" for value in values) for values in (images.mean, images.std)]
    if images.sizes is None:
        return ["-", *shares]
    (width, wider), (height, higher) = images.sizes.width, images.sizes.height
    smallest, largest = f"{width} x {height}", f"{wider} x {higher}"
    return [smallest if smallest == largest else f"{smallest} to {largest}", *shares]


# --- on record ---------------------------------------------------------------------------------


def save(run_dir: Path, census: Census) -> None:
    """Write it to the run's folder. Raises StorageError."""
    write_atomically(run_dir / FILE, census.model_dump_json(indent=1).encode())


def load(run_dir: Path) -> Census | None:
    """What is on record, None if nothing is. Raises StorageError."""
    path = run_dir / FILE
    try:
        return Census.model_validate_json(path.read_bytes()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read ({type(error).__name__}); remove it") from error
