"""Names of patients, lesions and groups, and placeholders that stand where no name is known.

Exports write `unknown`, `n/a` or `-` where a patient is not known. Taken as a name, such a value makes one patient
of many, and all of its images come on one side of the split. The reverse happens, too: `7`, `007` and `7.0` are one
patient in three spellings, and taken as three they are trained and tested on.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from client.data.manifest import ImageRow
from client.data.readers.rows import Unused
from client.data.readers.table import ROUNDED, ROUNDED_BY

Kind: TypeAlias = Literal["patient", "lesion", "group"]
_WHOLE = re.compile(r"0*(\d+?)(?:[.,]0+)?")
"""A number as programs write it again: without the zeros in front, or as if it were a measurement."""

_PLACEHOLDERS = frozenset(
    [
        "unknown",
        "unk",
        "none",
        "na",
        "n/a",
        "n.a.",
        "n.a",
        "n.v.",
        "k.a.",
        "k.a",
        "nan",
        "nat",
        "null",
        "(null)",
        "nil",
        "undefined",
        "undef",
        "missing",
        "empty",
        "leer",
        "unbekannt",
        "inconnu",
        "inconnue",
        "desconocido",
        "desconocida",
        "sconosciuto",
        "onbekend",
        "anonymous",
        "anonymized",
        "anonymised",
        "anonym",
        "anon",
        "anonymisiert",
        "deidentified",
        "de-identified",
        "tbd",
        "#n/a",
        "#na",
        "#null!",
        "<na>",
        "<null>",
        "<none>",
        "not_available",
        "not_applicable",
    ]
) | {
    "not available",
    "not applicable",
    "not known",
    "no patient",
    "no id",
    "patient unknown",
    "unknown patient",
}


def is_placeholder(value: str) -> bool:
    """True for a value that stands where no name is known, such as `unknown`, `n/a`, `-` or `???`."""
    folded = unicodedata.normalize("NFKC", value).strip().casefold()
    # Nothing but signs is a placeholder either.
    return not any(sign.isalnum() for sign in folded) or folded in _PLACEHOLDERS


def named(
    rows: Sequence[ImageRow], values: Iterable[str | None], kind: Kind
) -> tuple[list[ImageRow], list[Unused]]:
    """Rows with their patient, lesion or group; the placeholders, by what they say, and names of several spellings."""
    placeholders: defaultdict[str, list[str]] = defaultdict(list)
    names = []
    for row, value in zip(rows, values, strict=True):
        name = unicodedata.normalize("NFC", value or "").strip()
        if name and is_placeholder(name):
            placeholders[name].append(row.source)
            name = ""
        names.append(name)
    chosen = one_spelling(names)
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for name, first in chosen.items():
        spellings[first].append(name)
    several = tuple(" = ".join(alike) for alike in spellings.values() if len(alike) > 1)
    result = [_with_name(row, kind, chosen.get(name)) for row, name in zip(rows, names, strict=True)]
    rounded = tuple(row.source for row, name in zip(rows, names, strict=True) if ROUNDED.fullmatch(name))
    joined = [Unused(f"{kind}s {SEVERAL_SPELLINGS}", several, what=TAKEN_AS_ONE)] if several else []
    if rounded:
        # Written to the same digits, several patients are one; so their images are on one side of the split.
        joined.append(Unused(f"images whose {kind} {ROUNDED_BY}", rounded, what="taken as they stand"))
    return result, joined + [
        Unused(
            f"images whose {kind} is written {value!r}, which is a placeholder",
            tuple(sources),
            what=f"taken as of no known {kind}",
        )
        for value, sources in sorted(placeholders.items())
    ]


SEVERAL_SPELLINGS = "in spellings that differ in large letters, blanks, or zeros around a number"
TAKEN_AS_ONE = "taken as one"


def one_spelling(names: Iterable[str]) -> dict[str, str]:
    """For each name the one to take: the first, in alphabetical order, of those that are surely meant to be one.

    Two patients that are taken for one only share a side of the split; one that is taken for two is tested on
    after training on it. So when in doubt, names are one.
    """
    first: dict[str, str] = {}
    return {name: first.setdefault(spelling(name), name) for name in sorted({*names} - {""})}


def spelling(name: str) -> str:
    """What all spellings of a name have in common."""
    visible = "".join(
        sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf"
    )
    folded = " ".join(visible.casefold().split())
    return number[1] if (number := _WHOLE.fullmatch(folded)) else folded


def _with_name(row: ImageRow, kind: Kind, name: str | None) -> ImageRow:
    match kind:
        case "patient":
            return replace(row, patient=name)
        case "lesion":
            return replace(row, lesion=name)
        case "group":
            return replace(row, group=name)
