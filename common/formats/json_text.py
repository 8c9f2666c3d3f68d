"""JSON text in which no key stands twice.

Python takes the last of two equal keys, other programs the first. So a message or a record could mean one
thing to the program that checks it and another to the one that acts on it.
"""

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """The values of a JSON text. Raises ValueError, also for a key that stands twice and for too deep nesting."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("too many levels inside each other") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice in one object")  # which one may be private
    return values
