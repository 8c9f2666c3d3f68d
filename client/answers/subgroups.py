"""The counts by subgroup that go with the test at the end: by the columns or tags that the site's YAML names."""

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from client.config import DicomData, SiteConfig, SubgroupSource, Tabled
from client.data.manifest import ImageRow
from client.governance import subgroup_cells
from client.governance.subgroup_cells import Placed, ScoredImages
from common import log
from common.config import Attribute, Bands, StudyConfig
from common.config.subgroups import titles
from common.metrics.subgroups import SubgroupCounts

Numbers = npt.NDArray[np.int64]


def asked(study: StudyConfig, site: SiteConfig) -> dict[str, Attribute]:
    """Attributes that the study asks for and this site counts by; says in the log which it does not."""
    if not study.subgroups:
        return {}
    rules = site.policy
    if not (rules.subgroups and rules.scores):
        log.event("no counts by subgroup leave: policy.subgroups or policy.scores is false")
        return {}
    sources = sources_of(site)
    found = {}
    for name, attribute in study.subgroups.items():
        if name not in sources:
            log.event(f"no counts by {name} leave: data.subgroups names no column for it")
        elif _divides(attribute, sources[name]):
            log.warn(
                f"no counts by {name} leave: the study's bands divide those of data.subgroups.{name}.bands; add "
                "the edges there if they may be counted"
            )
        else:
            found[name] = attribute
    return found


def counts(
    predicted_N: Numbers, rows: Sequence[ImageRow], study: StudyConfig, site: SiteConfig
) -> dict[str, SubgroupCounts]:
    """By attribute, of these test images and the model's predictions for them."""
    attributes, sources, rules = asked(study, site), sources_of(site), site.policy
    placed = {}
    for name, attribute in attributes.items():
        places_N = places(rows, name, attribute, sources[name])
        placed[name] = Placed(places_N, len(titles(attribute)))
        unknown = int((places_N < 0).sum())
        log.event(f"counts by {name}: {unknown} of {len(rows)} test images have no value of the study")
    labels_N = np.array([study.classes.index(row.label) for row in rows], np.int64)
    return subgroup_cells.counts(
        ScoredImages(predicted_N, labels_N, [row.group_key for row in rows]),
        placed,
        len(study.classes),
        least=max(rules.min_subgroup, rules.min_cell or 0),
        least_cell=rules.min_score_cell,
    )


def sources_of(site: SiteConfig) -> dict[str, SubgroupSource]:
    """The site's columns and tags by attribute; none for data without a table."""
    match site.data:
        case DicomData() as data:
            return {**data.subgroups, **data.subgroup_tags}
        case Tabled() as data:
            return {**data.subgroups}
        case _:
            return {}


def places(rows: Sequence[ImageRow], name: str, attribute: Attribute, source: SubgroupSource) -> Numbers:
    """For each image the number of its value, -1 where it has none of the study's."""
    found = {cell: _place(cell, attribute, source) for cell in {row.attributes.get(name, "") for row in rows}}
    return np.array([found[row.attributes.get(name, "")] for row in rows], np.int64)


def _place(cell: str, attribute: Attribute, source: SubgroupSource) -> int:
    spelled = {_folded(there): value for there, value in source.values.items()}
    value = spelled.get(_folded(cell), cell)
    if not value:
        return -1
    if isinstance(attribute, Bands):
        number = _number(value)
        edges = attribute.bands
        if number is None or not edges[0] <= number < edges[-1]:
            return -1
        return int(np.searchsorted(edges, number, side="right")) - 1
    names = [_folded(name) for name in attribute]
    return names.index(_folded(value)) if _folded(value) in names else -1


def _folded(value: str) -> str:
    """Alike for spellings that differ in large letters, blanks, hyphens and underscores."""
    return re.sub(r"[\s_-]+", " ", value.strip().casefold())


_AGE = re.compile(r"(\d{1,3})([ymwd])", re.IGNORECASE)
_A_YEAR = {"y": 1.0, "m": 12.0, "w": 52.18, "d": 365.25}
"""An age as DICOM writes it, in years, months, weeks or days: 045Y."""


def _number(cell: str) -> float | None:
    if age := _AGE.fullmatch(cell):
        return int(age[1]) / _A_YEAR[age[2].casefold()]
    try:
        number = float(cell.replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _divides(attribute: Attribute, source: SubgroupSource) -> bool:
    """Whether the study's bands have an edge that the site's finest bands have not."""
    return (
        isinstance(attribute, Bands)
        and source.bands is not None
        and not {*attribute.bands} <= {*source.bands}
    )
