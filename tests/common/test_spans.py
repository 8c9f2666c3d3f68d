"""A span of time in the unit that a person would choose."""

import pytest

from common.spans import format_span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (12_600, "3.5 h")],
)
def test_a_span_is_in_seconds_below_two_minutes_and_in_minutes_below_two_hours(
    seconds: float, text: str
) -> None:
    assert format_span(seconds) == text
