"""Settings of what a site counts its test images by for subgroups: columns of its table, tags of its DICOM files."""

from typing import Literal

from pydantic import field_validator

from client.config.cells import Cell, Column
from common.config import Name
from common.config.subgroups import Edges, require_rising
from common.settings import Frozen


class SubgroupSource(Frozen):
    """How the values that a site has of an attribute become the study's."""

    values: dict[Cell, Name | None] = {}  # noqa: RUF012  (pydantic copies it)
    """The study's value by the site's own, e.g. `{f: female, m: male}`; null counts as not known. A value that is not
    here stays as it is."""
    bands: Edges | None = None
    """The finest bands of a number, e.g. `[0, 40, 60, 120]`. A study may join bands. One that divides them gets no
    counts of this attribute: two studies with edges a year apart would count the patients of that year. None: any."""

    @field_validator("bands")
    @classmethod
    def _rise(cls, bands: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if bands is None else require_rising(bands)


class SubgroupColumn(SubgroupSource):
    """Column of the site's table that holds an attribute of the study, such as sex or age."""

    column: Column
    """The column, spelled as in the table's first line."""


class SubgroupTag(SubgroupSource):
    """DICOM attribute that holds an attribute of the study. An age may be in years, months, weeks or days: `045Y`."""

    tag: Literal[
        "PatientAge",
        "PatientSex",
        "BodyPartExamined",
        "ImageLaterality",
        "ViewPosition",
        "Manufacturer",
        "ManufacturerModelName",
    ]
    """Its keyword in the standard (DICOM PS3.6). No name, number or date of a person is among them."""
