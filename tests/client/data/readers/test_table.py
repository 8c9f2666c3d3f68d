"""Tables as programs save them, and what is said about those that cannot be read."""

import os
from pathlib import Path

import pytest

from client.data.readers.table import read_table
from common.errors import SiteDataError


def table(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(data)
    return path


PLAIN = "file,label\nä.png,mel\n"


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        b"\xfe\xff" + PLAIN.encode("utf-16-be"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.replace(",", "|").encode(),
        f"sep=,\r\n{PLAIN}".encode("utf-8-sig"),
        ("\n\n" + PLAIN).encode(),
        "\u200bfile\xa0,label\n ä.png\u200b,mel\n".encode(),
        PLAIN.encode("utf-32"),
        "file,label,,\nä.png,mel,,\n".encode(),
        "file,label\nä.png,mel,\n".encode(),
        "file,label\n , \n,,,\nä.png,mel\n\n \n".encode(),
        'file,label\n="ä.png",mel\n'.encode(),
        'file,label\n"=""ä.png""",mel\n'.encode(),
    ],
)
def test_a_table_is_read_however_a_program_saved_it(tmp_path: Path, data: bytes) -> None:
    read = read_table(table(tmp_path, data))
    assert read.header == ("file", "label")
    assert [cells for _, cells in read.rows] == [{"file": "ä.png", "label": "mel"}]


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ('file,label,"a;b;c;d"\na.png,mel,1\n', ("file", "label", "a;b;c;d")),
        ("file;label;size (w, h, d)\na.png;mel;1,5\n", ("file", "label", "size (w, h, d)")),
        ("file,label,a|b|c|d\na.png,mel,1\nb.png,nv\n", ("file", "label", "a|b|c|d")),
        ("file;label\n", ("file", "label")),
    ],
)
def test_the_delimiter_is_that_of_the_rows_and_not_one_in_a_name(
    tmp_path: Path, text: str, header: tuple[str, ...]
) -> None:
    assert read_table(table(tmp_path, text.encode())).header == header


def test_a_note_beside_the_columns_is_no_row_of_too_many_cells(tmp_path: Path) -> None:
    read = read_table(table(tmp_path, b"file,label,,\na.png,mel,,look again\nb.png,nv,,\nc.png,nv,,,x\n"))
    assert read.header == ("file", "label")
    assert [cells["file"] for _, cells in read.rows] == ["a.png", "b.png"]
    assert read.problems == ("labels.csv row 4: 5 cells under 4 column names",)


def test_a_number_behind_an_apostrophe_is_a_number_and_a_name_keeps_its_own(tmp_path: Path) -> None:
    read = read_table(table(tmp_path, b"id,name\n'0017,'t Hart\n'1.2.840.5,D'Amico\n"))
    assert [tuple(cells.values()) for _, cells in read.rows] == [
        ("0017", "'t Hart"),
        ("1.2.840.5", "D'Amico"),
    ]


def test_a_column_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SiteDataError, match="has the column 'label' twice"):
        read_table(table(tmp_path, b"file,label,label\na.png,mel,nv\n"))


def test_a_line_that_states_the_separator_is_believed_and_counts_as_a_row(tmp_path: Path) -> None:
    read = read_table(table(tmp_path, b"sep=;\nfile;label,or;more\na.png;mel;x,y,z\n"))
    assert read.header == ("file", "label,or", "more")
    assert read.rows[0][0] == 3


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("file,label\na.png,mel\nm\xfcller.png,mel\n".encode("cp1252"), "line 3 has the byte 0xFC"),
        ("file,label\n".encode("utf-16-le"), "zero bytes, like UTF-16 without its mark"),
        (b"\xff\xfef\0i\0l", "begins like UTF-16 and is cut short"),
        (b"PK\x03\x04rest", "an Excel or OpenDocument workbook"),
        (b"\xd0\xcf\x11\xe0rest", "an Excel workbook"),
        (b"\n<!doctype html><html>", "a web page"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x1f\x8b\x08", "a compressed file"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Workbook/>', "an XML file"),
        (b"<table><tr><td>file</td></tr></table>", "a web page"),
        (b'[{"file": "a.png"}]', "a JSON file"),
        (b"{\\rtf1 file,label}", "a text document"),
        (b"PAR1rest", "a Parquet file"),
        (b"SQLite format 3\0", "a database"),
        (b"$FL2@(#) SPSS DATA FILE", "a data file of SPSS"),
        (bytes(100) + b"SAS FILE", "no text, but a file of another program"),
    ],
)
def test_what_cannot_be_read_is_said_with_the_way_to_save_it(tmp_path: Path, data: bytes, what: str) -> None:
    with pytest.raises(SiteDataError, match=f"{what}.*Save it as csv in UTF-8"):
        read_table(table(tmp_path, data))


def test_a_table_that_consilium_wrote_keeps_file_names_of_any_encoding(tmp_path: Path) -> None:
    path = table(tmp_path, b"image\nm\xfcller.png\n")
    assert read_table(path, own=True).rows[0][1]["image"] == os.fsdecode(b"m\xfcller.png")


def test_a_quotation_mark_that_is_not_closed_and_the_rows_that_it_takes_in_are_named(tmp_path: Path) -> None:
    path = table(tmp_path, b'file,label\na.png,mel\nb.png,"nv\nc.png,mel\nd.png,nv\n')
    read = read_table(path)
    assert read.problems == (
        "labels.csv row 3: a cell goes on over 2 lines that look like rows; a quotation mark in it is not closed",
    )


def test_free_text_of_several_lines_is_one_cell(tmp_path: Path) -> None:
    path = table(tmp_path, b'file,label,note\na.png,mel,"dark, large\nfollow up"\nb.png,nv,\n')
    read = read_table(path)
    assert read.problems == ()
    assert [cells["file"] for _, cells in read.rows] == ["a.png", "b.png"]
