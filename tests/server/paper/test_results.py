"""Results over seeds, with numbers that can be worked by hand."""

import math

import pytest

from server.paper.results import estimate


def test_the_interval_is_students_over_the_seeds() -> None:
    found = estimate([70.0, 72.0, 74.0])
    assert found.mean == 72
    assert found.half == pytest.approx(4.303 * 2 / math.sqrt(3))  # standard deviation 2
    assert str(found) == "72.0 ± 5.0"


@pytest.mark.parametrize(("num_seeds", "quantile"), [(11, 2.228), (21, 2.086), (61, 2.000), (1001, 1.962)])
def test_beyond_the_table_the_quantile_is_students_too(num_seeds: int, quantile: float) -> None:
    values = [0.0, 2.0] * (num_seeds // 2) + [1.0]  # mean 1, n - 1 squares of 1: standard deviation 1
    assert estimate(values).half == pytest.approx(quantile / math.sqrt(num_seeds), rel=3e-4)


def test_one_seed_has_no_interval() -> None:
    assert str(estimate([70.0])) == "70.0"


def test_a_figure_that_a_seed_lacks_is_none() -> None:
    assert str(estimate([70.0, math.nan])) == "-"
