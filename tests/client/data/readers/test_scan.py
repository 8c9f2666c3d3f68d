"""What a scan of a folder finds, and what it says about everything that it passes over."""

import os
from pathlib import Path

import pytest
from PIL import Image

from client.data.readers.scan import Scan, beside_folders, folders_in, scan


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def picture(path: Path, kind: str = "JPEG", grey: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (grey, 90, 90)).save(path, kind)
    return path


def names(found: Scan, home: Path) -> list[str]:
    return [path.relative_to(home).as_posix() for path in found.images]


def kinds(found: Scan) -> dict[str, tuple[str, ...]]:
    return {unused.kind: unused.names for unused in found.unused}


@pytest.mark.parametrize(
    "name", ["a.JPG", "a.jfif", "a.JPEG", "a.jpe", "a", "IMG.0001", "1.2.840.113", "a.Png", "a.TIFF"]
)
def test_an_image_is_found_whatever_its_ending_is(home: Path, name: str) -> None:
    picture(home / name)
    assert names(scan(home), home) == [name]
    assert scan(home).unused == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000"])
def test_an_image_without_an_ending_is_known_by_its_first_bytes(home: Path, kind: str) -> None:
    picture(home / "scan", kind)
    assert names(scan(home), home) == ["scan"]


def test_what_is_no_image_is_counted_by_its_ending(home: Path) -> None:
    picture(home / "a.jpg")
    for name in ("notes.txt", "b.TXT", "table.csv", "readme"):
        (home / name).write_text("text")
    assert kinds(scan(home)) == {
        "files with the ending .txt": ("b.TXT", "notes.txt"),
        "files with the ending .csv": ("table.csv",),
        "files without an ending that hold no image": ("readme",),
    }


def test_an_image_under_a_strange_ending_is_not_used_but_named_as_one(home: Path) -> None:
    picture(home / "a.jpg.part")
    assert kinds(scan(home)) == {"image files under the ending .part": ("a.jpg.part",)}


def test_a_dicom_among_pictures_is_named_as_one(home: Path) -> None:
    (home / "slice").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (home / "other.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    assert kinds(scan(home)) == {"DICOM files, which `data.kind: dicom` reads": ("other.dcm", "slice")}


@pytest.mark.parametrize("name", ["Thumbs.db", ".DS_Store", "._a.jpg", "desktop.ini", "__MACOSX", "@eaDir"])
def test_files_of_the_operating_system_are_named_and_need_no_look(home: Path, name: str) -> None:
    picture(home / name / "a.jpg") if name in ("__MACOSX", "@eaDir") else picture(home / name)
    (unused,) = scan(home).unused
    assert unused.kind == "files of the operating system"
    assert unused.names == (f"{name}/" if (home / name).is_dir() else name,)
    assert unused.is_usual


def test_hidden_files_are_named(home: Path) -> None:
    picture(home / ".a.jpg")
    picture(home / ".copies" / "b.jpg")
    assert kinds(scan(home)) == {"hidden files, whose names start with a dot": (".a.jpg", ".copies/")}


# --- links -----------------------------------------------------------------------------------


def test_links_to_folders_and_files_are_followed(home: Path, tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "deep" / "a.jpg")
    picture(tmp_path / "b.jpg")
    (home / "linked").symlink_to(tmp_path / "elsewhere")
    (home / "b.jpg").symlink_to(tmp_path / "b.jpg")
    assert names(scan(home), home) == ["b.jpg", "linked/deep/a.jpg"]


def test_a_folder_is_read_once_where_it_lies_however_many_links_lead_to_it(home: Path) -> None:
    picture(home / "z" / "a.jpg")
    (home / "a").symlink_to(home / "z")
    assert names(scan(home), home) == ["z/a.jpg"]
    assert kinds(scan(home)) == {"links to a folder that is read already": ("a",)}


def test_a_link_to_a_folder_above_ends(home: Path) -> None:
    picture(home / "a" / "a.jpg")
    (home / "a" / "again").symlink_to(home)
    assert names(scan(home), home) == ["a/a.jpg"]
    assert kinds(scan(home)) == {"links to a folder that is read already": ("a/again",)}


def test_links_that_lead_nowhere_are_named(home: Path) -> None:
    (home / "lost.jpg").symlink_to(home / "nothing.jpg")
    (home / "self").symlink_to(home / "self")
    assert kinds(scan(home)) == {"links that lead nowhere": ("lost.jpg", "self")}


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg", "pipe.dcm"])
def test_a_pipe_is_not_waited_for_whatever_it_is_called(home: Path, name: str) -> None:
    """To open one without a writer takes forever."""
    os.mkfifo(home / name)
    assert kinds(scan(home)) == {"pipes, sockets and devices": (name,)}
    assert [(unused.kind, unused.names) for unused in beside_folders(home)] == [
        ("pipes, sockets and devices", (name,))
    ]


def test_a_file_name_in_another_encoding_is_found(home: Path) -> None:
    name = os.fsdecode(b"m\xfcller.jpg")
    picture(home / name)
    assert names(scan(home), home) == [name]


# --- masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask", ["a_mask.png", "a_mask_1.png", "a-segmentation.png", "a seg.png", "masks/a.png"]
)
def test_a_mask_beside_its_image_is_not_an_image_of_the_class(home: Path, mask: str) -> None:
    picture(home / "a.png")
    picture(home / mask, "PNG")
    assert names(scan(home), home) == ["a.png"]
    (unused,) = scan(home).unused
    assert (unused.kind, unused.names, unused.is_usual) == ("masks beside their images", (mask,), False)


def test_masks_in_a_folder_beside_that_of_the_images_are_masks(home: Path) -> None:
    picture(home / "images" / "a.jpg")
    picture(home / "masks" / "a.png", "PNG")
    assert names(scan(home), home) == ["images/a.jpg"]


def test_a_mask_without_its_image_is_an_image(home: Path) -> None:
    """A class of faces with masks, for example."""
    picture(home / "with_mask.jpg")
    picture(home / "masks" / "b.jpg")
    assert names(scan(home), home) == ["masks/b.jpg", "with_mask.jpg"]


# --- one level -------------------------------------------------------------------------------


def test_folders_of_the_operating_system_are_no_classes(home: Path) -> None:
    for name in ("train", "test", "__MACOSX", ".git"):
        (home / name).mkdir()
    assert [folder.name for folder in folders_in(home)] == ["test", "train"]
    assert {unused.kind for unused in beside_folders(home)} == {
        "files of the operating system",
        "hidden files, whose names start with a dot",
    }


def test_images_beside_the_folders_of_classes_are_named(home: Path) -> None:
    picture(home / "a.jpg")
    (home / "mel").mkdir()
    (unused,) = beside_folders(home)
    assert (unused.kind, unused.names) == ("image files that lie in no folder of a class", ("a.jpg",))
