"""Which values name a patient, and which say that none is known."""

import unicodedata
from pathlib import Path

import pytest

from client.data.manifest import ImageRow
from client.data.readers.patients import is_placeholder, named
from client.data.references import PictureFile


@pytest.mark.parametrize(
    "value",
    ["unknown", "Unknown", "NONE", "n/a", "N.A.", "-", "--", "?", "nan", "NaN", "null", "", " ", "unbekannt",
     "#N/A", "<NA>", "anonymous", "Not available", "...", "\uff4e\uff0f\uff41"],
)  # fmt: skip
def test_a_placeholder_is_no_name(value: str) -> None:
    assert is_placeholder(value)


@pytest.mark.parametrize(
    "value", ["P1", "0", "007", "Nanna", "none1", "A-12", "X", "unknown-17", "张伟", "Nil Özil"]
)
def test_values_that_may_name_somebody(value: str) -> None:
    assert not is_placeholder(value)


def rows(number: int) -> list[ImageRow]:
    return [ImageRow(PictureFile(Path(f"{i}.png")), "mel", None, None, f"row {i}") for i in range(number)]


def test_images_of_unknown_patients_are_of_none_and_are_counted_by_what_they_say() -> None:
    result, unused = named(rows(5), ["P1", "unknown", "n/a", "unknown", ""], "patient")
    assert [row.patient for row in result] == ["P1", None, None, None, None]
    assert [(entry.kind, entry.names) for entry in unused] == [
        ("images whose patient is written 'n/a', which is a placeholder", ("row 2",)),
        ("images whose patient is written 'unknown', which is a placeholder", ("row 1", "row 3")),
    ]
    assert unused[0].text.startswith("taken as of no known patient: 1 images")


def test_one_name_in_several_spellings_is_one_patient_and_is_named() -> None:
    """Excel and pandas write 007 as 7 or 7.0; people write P 1 as p 1."""
    values = ["007", "7", "7.0", "P 1", "p \u200b 1", "P1", "17", "0", "00", "1.5"]
    result, unused = named(rows(len(values)), values, "patient")
    assert [row.patient for row in result] == ["007", "007", "007", "P 1", "P 1", "P1", "17", "0", "0", "1.5"]
    assert [entry.text for entry in unused] == [
        "taken as one: 3 patients in spellings that differ in large letters, blanks, or zeros around a number "
        "(0 = 00, 007 = 7 = 7.0, P 1 = p \u200b 1)"
    ]


def test_numbers_that_a_spreadsheet_rounded_are_named() -> None:
    """1,676,830,000,000,001 and ...002 are written alike, so two patients are one."""
    result, unused = named(rows(3), ["1.67683E+15", "1.67683E+15", "P1"], "patient")
    assert len({row.patient for row in result}) == 2
    assert [entry.text for entry in unused] == [
        "taken as they stand: 2 images whose patient a spreadsheet has rounded (1.2E+05); save the column as text "
        "(row 0, row 1)"
    ]


def test_one_name_in_two_forms_of_unicode_is_one_patient() -> None:
    forms = [unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD")]
    result, _ = named(rows(2), forms, "lesion")
    assert result[0].lesion == result[1].lesion
