"""Names of patients, lesions and groups: which values name somebody, and which say that nobody is known.

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

_NOBODY = frozenset(
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


def is_nobody(value: str) -> bool:
    """True for a value that stands where no name is known, such as `unknown`, `n/a`, `-` or `???`."""
    folded = unicodedata.normalize("NFKC", value).strip().casefold()
    # Nothing but signs names nobody either.
    return not any(sign.isalnum() for sign in folded) or folded in _NOBODY


def named(
    rows: Sequence[ImageRow], values: Iterable[str | None], kind: Kind
) -> tuple[list[ImageRow], list[Unused]]:
    """Rows with their patient, lesion or group, and the values that name nobody, by what they say.

    Two spellings of an accent are one name (Unicode NFC).
    """
    nobody: defaultdict[str, list[str]] = defaultdict(list)
    result = []
    for row, value in zip(rows, values, strict=True):
        name = unicodedata.normalize("NFC", value or "").strip()
        if name and is_nobody(name):
            nobody[name].append(row.source)
            name = ""
        result.append(_with_name(row, kind, name or None))
    return result, [
        Unused(f"images whose {kind} is written {value!r}, which names nobody", tuple(sources))
        for value, sources in sorted(nobody.items())
    ]


def _with_name(row: ImageRow, kind: Kind, name: str | None) -> ImageRow:
    match kind:
        case "patient":
            return replace(row, patient=name)
        case "lesion":
            return replace(row, lesion=name)
        case "group":
            return replace(row, group=name)
