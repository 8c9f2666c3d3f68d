"""Which file a name in a table means."""

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from client.data.readers.lookup import ImageFinder
from client.data.references import BadImage
from common.errors import SiteDataError


def picture(path: Path, grey: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (16, 16), grey).save(path, "PNG")
    return path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("img/p1/a.png", "p1/a.png"),
        ("Export\\IMG\\a.png", "a.png"),
        ("https://example.org/set/a.png", "a.png"),
        ("https://example.org/get/a%20b.png?raw=1#top", "a b.png"),
        ("file:///C:/data/p1/a.png", "p1/a.png"),
        ("s3://bucket/p1/a", "p1/a.png"),
    ],
)
def test_folders_above_that_of_the_images_and_addresses_are_no_part_of_a_name(
    tmp_path: Path, name: str, file: str
) -> None:
    home = tmp_path / "export" / "img"
    picture(home / file)
    picture(home / "another.png")
    assert found(home, name) == file


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Läsion_Ä.png", "L„sion_Ž.png".encode()),  # packed as code page 437, unpacked as cp1252
        ("Läsion_Ä.png", "Läsion_Ä.png".encode("cp437")),  # ... and left as it was
        ("Läsion_Ä.png", "Läsion_Ä.png".encode("latin-1")),
        ("Läsion_Ä.png", "L├ñsion_├ä.png".encode()),  # UTF-8, unpacked as code page 437
        ("Läsion.png", "La╠êsion.png".encode()),  # UTF-8 of a Mac, unpacked so
        ("LÃ¤sion.png", "Läsion.png".encode()),  # the table was saved twice
        ("P\u200b1/a.png", b"P1/a.png"),
    ],
)
def test_a_name_that_was_read_in_another_encoding_is_found_and_counted(
    tmp_path: Path, name: str, file: bytes
) -> None:
    picture(tmp_path / os.fsdecode(file))
    picture(tmp_path / "another.png")
    finder = ImageFinder((tmp_path,))
    assert os.fsencode(finder.find(name).relative_to(tmp_path)) == file
    assert [unused.what for unused in finder.unused(tmp_path / "labels.csv")] == ["not used", "found nearly"]


def test_a_number_that_a_spreadsheet_rounded_is_said_to_be_one(tmp_path: Path) -> None:
    picture(tmp_path / "123456789012345.png")
    with pytest.raises(BadImage, match=r"no image '1\.23E\+14' in .*, which a spreadsheet has rounded"):
        ImageFinder((tmp_path,)).find("1.23E+14")


def test_a_file_of_that_name_in_another_folder_is_named_and_not_taken(tmp_path: Path) -> None:
    picture(tmp_path / "p1" / "a.png")
    with pytest.raises(
        BadImage, match=r"no image 'p2/a\.png' in .*; there is p1/a\.png, which may be another"
    ):
        ImageFinder((tmp_path,)).find("p2/a.png")


def found(home: Path, name: str) -> str:
    return ImageFinder((home,)).find(name).relative_to(home).as_posix()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "a.png"),
        ("a", "a.png"),
        ("a.jpg", "a.JPG"),
        ("A.JPG", "a.jpg"),
        ("a.jpeg", "a.jpg"),
        ("p1\\a.png", "p1/a.png"),
        ("./p1/a.png", "p1/a.png"),
        ("P1/A", "p1/a.png"),
        ("a.png", "deep/er/a.png"),
        ("C:\\Export\\p1\\a.png", "p1/a.png"),
        ("/mnt/old/p1/a.png", "p1/a.png"),
        (unicodedata.normalize("NFC", "Läsion.png"), unicodedata.normalize("NFD", "Läsion.png")),
        (unicodedata.normalize("NFD", "Läsion.png"), unicodedata.normalize("NFC", "Läsion.png")),
        ("ISIC_1", "ISIC_1_downsampled.jpg"),
        ("ISIC_1_downsampled", "ISIC_1.jpg"),
        ("1.2.840.5", "1.2.840.5.png"),
    ],
)
def test_the_one_file_that_a_name_can_mean_is_found(tmp_path: Path, name: str, file: str) -> None:
    picture(tmp_path / file)
    picture(tmp_path / "another.png")
    assert found(tmp_path, name) == file


@pytest.mark.parametrize("name", ["b.png", "p2/a.png", "", ".", "/", "a\0.png", "x" * 300])
def test_a_name_that_means_no_file_is_said(tmp_path: Path, name: str) -> None:
    """A row of one patient never takes the file of another, though only that one has the name."""
    picture(tmp_path / "p1" / "a.png")
    with pytest.raises(BadImage, match=r"no (image|name)"):
        ImageFinder((tmp_path,)).find(name)


def test_two_files_that_a_name_can_mean_are_a_problem(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 1)
    picture(tmp_path / "b" / "a.png", 2)
    with pytest.raises(BadImage, match=r"2 files are called 'a': a.jpg, b/a.png; write the whole path"):
        ImageFinder((tmp_path,)).find("a")


def test_a_file_that_is_called_exactly_so_is_taken_before_those_that_are_nearly(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "A.PNG", 2)
    assert found(tmp_path, "A.PNG") == "A.PNG"


def test_copies_of_one_image_are_no_doubt_and_are_counted(tmp_path: Path) -> None:
    """Kaggle's HAM10000 has every image twice, in folders of large and of small letters."""
    picture(tmp_path / "Part_1" / "a.jpg")
    picture(tmp_path / "part_1" / "a.jpg")
    finder = ImageFinder((tmp_path,))
    assert finder.find("a") == tmp_path / "Part_1" / "a.jpg"
    (unused,) = finder.unused(tmp_path / "labels.csv")
    assert unused.text == "not used: 1 copies, byte for byte, of an image that is used (part_1/a.jpg)"


def test_images_that_no_row_names_are_counted_without_those_of_other_rows(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    finder = ImageFinder((tmp_path,))
    finder.find("./a.png")
    (unused,) = finder.unused(tmp_path / "labels.csv", ["b"])
    assert unused.text == "not used: 1 image files that no row of labels.csv names (c.png)"


def test_names_that_fit_only_nearly_are_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.JPG")
    finder = ImageFinder((tmp_path,))
    finder.find("a.jpg")
    (unused,) = finder.unused(tmp_path / "labels.csv")
    assert unused.names == ("a.jpg is a.JPG",)


def test_an_image_that_is_reached_over_a_link_is_used(tmp_path: Path) -> None:
    picture(tmp_path / "z" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "z")
    finder = ImageFinder((tmp_path,))
    finder.find("link/a.png")
    assert [unused.kind for unused in finder.unused(tmp_path / "labels.csv")] == [
        "links to a folder that is read already"
    ]


def test_a_file_name_in_another_encoding_is_found_by_its_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"m\xfcller.png")
    picture(tmp_path / name)
    assert found(tmp_path, name) == name


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SiteDataError, match=r"lost is not a folder; point data\.images at"):
        ImageFinder((tmp_path / "lost",))
