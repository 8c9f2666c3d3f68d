"""Columns and cells of a csv, as a site's settings name them."""

from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

from common.formats.yaml_scalars import as_written

Column = Annotated[str, StringConstraints(min_length=1)]
"""A column of a csv, spelled as in its first line."""

Cell = Annotated[str, Field(coerce_numbers_to_str=True), BeforeValidator(as_written)]
"""A value in a csv. Of a number or a date the text in the YAML counts: `007` is not 7, and `1.10` is not 1.1."""
