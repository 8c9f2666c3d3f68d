"""Spans of time as text for people."""

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def format_span(seconds: float) -> str:
    """`seconds` in the unit that a person would choose: "90 s", "12 min", "3.5 h", "7 days"."""
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < 2 * _DAY_S:
        return f"{seconds / _HOUR_S:.1f} h"
    return f"{round(seconds / _DAY_S, 1):g} days"
