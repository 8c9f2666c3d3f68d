"""Classes that are trained on and have no validation image: curves and the choice of the best round do not see them.

Balanced accuracy is the mean recall over the classes that are there. With validation images of one class alone, a model
that always says this class scores 1.0000, and would be chosen. So a study that chooses is refused if a class of many
images is missing there. A class of few patients may fall to the other sides by honest chance: then a warning says so.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from common import log
from common.config import StudyConfig
from common.errors import ConfigError
from server.enrolment.census import Census

FEW_IMAGES = 20
"""Training images below which a class may lack validation images. Sites deal whole patients, of about 0.15 for
validation: four patients of five images may all be on the other sides. The server knows images, not patients."""


@dataclass(frozen=True)
class MissingClasses:
    """Classes without validation images at the sites that have any."""

    images: Mapping[str, int]
    """Training images of all training sites, by class in the study's order."""
    sites: tuple[str, ...]
    """Where validation images of them are missing."""
    num_there: int
    """Classes that have validation images."""
    withholding: tuple[str, ...]
    """Sites among these whose policy leaves small classes out."""

    def describe(self) -> str:
        """Start of a sentence: each class with its training images, and the sites."""
        each = ", ".join(f"{name} ({number} training images)" for name, number in self.images.items())
        has = "has" if len(self.images) == 1 else "have"
        return f"{each} {has} no validation image at {', '.join(self.sites)}"


def missing(study: StudyConfig, census: Census, deciding: Collection[str] = ()) -> MissingClasses | None:
    """Classes that training sites train on and that no site of `deciding` validates on; without `deciding`, no site.

    None if there are none, or if these sites have no validation images at all, or if one of them is not in the census:
    what it holds is not known.
    """
    sites = tuple(site for site in study.sites.all if site in (deciding or census.sites))
    if census.totals is not None:
        sites, by_site = census.totals.sites, [census.totals.validation_counts]
    elif set(sites) <= census.sites.keys():
        sites = tuple(site for site in sites if sum(census.sites[site].validation_counts))
        by_site = [census.sites[site].validation_counts for site in sites]
    else:
        return None
    trained = [sum(counts) for counts in zip(*census.trained_on(study.sites.train), strict=True)]
    validated = [sum(counts) for counts in zip(*by_site, strict=True)]
    if not any(validated) or not trained:
        return None
    images = {
        name: number
        for name, number, there in zip(census.classes, trained, validated, strict=True)
        if number and not there
    }
    if not images:
        return None
    hiding = census.withholding or tuple(site for site, one in census.sites.items() if one.withheld)
    return MissingClasses(
        images, sites, sum(map(bool, validated)), tuple(site for site in hiding if site in sites)
    )


def require(study: StudyConfig, census: Census, deciding: Collection[str]) -> None:
    """Warn of classes without validation images; raise ConfigError if the study would choose without seeing them.

    `deciding` are the sites by whose validation images the study chooses.
    """
    found = missing(study, census, deciding) if study.rounds else None
    if found is None:
        return
    few = f"; {', '.join(found.withholding)} may have a few that the policy there leaves out"
    lacking = found.describe() + (few if found.withholding else "")
    if study.selection is None:
        log.warn(f"{lacking}: the curves over the rounds say nothing of that")
        return
    seen = [name for name in found.images if name not in study.untrained_classes]
    large = [name for name in seen if found.images[name] >= FEW_IMAGES]
    if large or (seen and found.num_there == 1):
        raise ConfigError(
            f"study {study.name} chooses by validation images, and {lacking}, so {study.selection.metric} there says "
            "nothing of that: raise `split.validation` in the YAML of a site that has such images, move some in the "
            "column of a split of its own, name other sites in selection.sites, or leave selection out"
        )
    log.warn(f"{lacking}: {study.selection.metric}, by which the study chooses, says nothing of that")


def paragraph(study: StudyConfig, census: Census, deciding: Collection[str]) -> list[str]:
    """The same for the report, as a paragraph; empty if every class that is trained on has validation images."""
    found = missing(study, census, deciding) if study.rounds else None
    if found is None:
        return []
    means = "The curves over the rounds say nothing of that."
    if study.selection is not None:
        means = f"The study chooses by their {study.selection.metric}, which says nothing of that."
    return [f"{found.describe()}. {means}"]
