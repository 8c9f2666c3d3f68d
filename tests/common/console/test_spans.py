"""A span of time in the unit that a person would choose."""

import pytest

from common.console.spans import format_span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2.0 h"),
        (12_600, "3.5 h"),
        (172_799, "48.0 h"),
        (172_800, "2 days"),
        (216_000, "2.5 days"),
    ],
)
def test_a_span_is_in_the_largest_unit_of_which_there_are_two(seconds: float, text: str) -> None:
    assert format_span(seconds) == text
