"""Plain words for what pydantic finds, and for names of settings that only look like the right ones.

The people who write these files know neither tuples nor discriminators. And a name with a letter of another
alphabet in it, as mail programs and word processors put it there, looks on the screen exactly like the one that
was meant: the message has to name the letter, or it reads as a riddle.
"""

import re
import unicodedata
from collections.abc import Sequence, Set

from pydantic_core import ErrorDetails

from common.text import one_line

PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$": "a name of at most 63 letters (a to z, A to Z), digits, `-`, `_` and `.`, "
    "the first a letter or a digit",
    r"^(auto|cpu|cuda(:\d+)?)$": "auto, cpu, cuda, or one of several as cuda:1",
}
"""Texts that settings expect, by the pattern that tests them."""

FILES = {
    "study": {"classes", "model"},
    "site": {"data", "state_dir"},
    "gateway": {"site", "server"},
    "federation": {"sites", "server"},
}
"""Settings that only such a file has together."""

_FOREIGN = re.compile("[^ -~]")


def plain(detail: ErrorDetails) -> str | None:
    """What was expected, in words, if pydantic's own are for programmers; None otherwise."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "tuple_type" | "list_type":
            return "expected a list, such as [a, b]"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "expected settings below it, one a line as `name: value`, or no such line at all"
        case "too_short":
            return f"expected at least {context['min_length']} of them, not {context['actual_length']}"
        case "too_long":
            return f"expected at most {context['max_length']} of them, not {context['actual_length']}"
        case "string_pattern_mismatch" if (words := PATTERNS.get(str(context.get("pattern")))) is not None:
            return f"expected {words}"
        case _:
            return None


def other_file(names: Set[object], what: str) -> str | None:
    """Which other file has these settings, if they are no `what`'s; None if that is not clear."""
    if what not in FILES or names >= FILES[what]:
        return None
    return next((other for other, marks in FILES.items() if marks <= names), None)


def choice(tags: Sequence[str], found: object, close: str | None) -> str:
    """A `kind` that is not there, or is none of `tags`."""
    guess = f"; did you mean {close}?" if close else ""
    return f"found {found!r}, expected one of {', '.join(tags)}{guess}"


def unlike(name: str) -> str | None:
    """What in the name of a setting no setting has, though it may not be seen: a letter of another alphabet, a
    blank that is none, a character without width. None for a name of plain characters."""
    if (match := _FOREIGN.search(name)) is not None:
        letter = match[0]
        called = unicodedata.name(letter, "a character without a name")
        return f"its character {match.start() + 1} is no letter of a setting's name: U+{ord(letter):04X}, {called}"
    if name != name.strip():
        return "it has a blank at its end" if name == name.lstrip() else "it has a blank at its beginning"
    return None


def looks_like(name: str, known: Sequence[str]) -> str | None:
    """The one of `known` that `name` looks like: foreign characters may stand for any letter, or for none."""
    pattern = re.compile("".join(".?" if _FOREIGN.match(c) else re.escape(c) for c in name.strip()))
    return next((other for other in known if pattern.fullmatch(other)), None) if unlike(name) else None


def shown(name: str) -> str:
    """A name for a message, with what does not print written out."""
    return one_line(name)
