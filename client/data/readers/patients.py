"""Names of patients, lesions and groups, and placeholders that stand where no name is known.

Exports write `unknown`, `n/a` or `-` where a patient is not known. Taken as a name, such a value makes one patient
of many, and all of its images come on one side of the split.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from client.data.manifest import ImageRow
from client.data.readers.rows import Unused

Kind: TypeAlias = Literal["patient", "lesion", "group"]

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
    """Rows with their patient, lesion or group, and the placeholders, by what they say.

    Two spellings of an accent are one name (Unicode NFC).
    """
    placeholders: defaultdict[str, list[str]] = defaultdict(list)
    result = []
    for row, value in zip(rows, values, strict=True):
        name = unicodedata.normalize("NFC", value or "").strip()
        if name and is_placeholder(name):
            placeholders[name].append(row.source)
            name = ""
        result.append(_with_name(row, kind, name or None))
    return result, [
        Unused(
            f"images whose {kind} is written {value!r}, which is a placeholder",
            tuple(sources),
            what=f"taken as of no known {kind}",
        )
        for value, sources in sorted(placeholders.items())
    ]


def _with_name(row: ImageRow, kind: Kind, name: str | None) -> ImageRow:
    match kind:
        case "patient":
            return replace(row, patient=name)
        case "lesion":
            return replace(row, lesion=name)
        case "group":
            return replace(row, group=name)
