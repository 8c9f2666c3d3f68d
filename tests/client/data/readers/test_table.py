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
    ],
)
def test_a_table_is_read_however_a_program_saved_it(tmp_path: Path, data: bytes) -> None:
    read = read_table(table(tmp_path, data))
    assert read.header == ("file", "label")
    assert [cells for _, cells in read.rows] == [{"file": "ä.png", "label": "mel"}]


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
