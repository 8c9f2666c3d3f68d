"""Results over seeds, with numbers that can be worked by hand."""

import math

import pytest

from server.paper.results import estimate


def test_the_interval_is_students_over_the_seeds() -> None:
    found = estimate([70.0, 72.0, 74.0])
    assert found.mean == 72
    assert found.half == pytest.approx(4.303 * 2 / math.sqrt(3))  # standard deviation 2
    assert str(found) == "72.0 ± 5.0"


def test_one_seed_has_no_interval() -> None:
    assert str(estimate([70.0])) == "70.0"


def test_a_figure_that_a_seed_lacks_is_none() -> None:
    assert str(estimate([70.0, math.nan])) == "-"
