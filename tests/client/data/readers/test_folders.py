"""One folder per class: which folders are classes, who the patient is, and what is not used."""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from client.config import FoldersData
from client.config.data import GroupPattern
from client.data.readers import read
from client.data.readers.folders import read_folders
from common.errors import SiteDataError


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (16, 16), 90).save(path, "PNG")
    return path


def labels(root: Path) -> list[tuple[str, str | None]]:
    return [(row.label, row.split) for row in read_folders(FoldersData(root=root)).rows]


def test_sides_are_known_among_files_of_the_operating_system(tmp_path: Path) -> None:
    for name in ("train/mel/a.png", "test/nv/b.png", "__MACOSX/train/c.png", ".DS_Store", "Thumbs.db"):
        picture(tmp_path / name)
    assert labels(tmp_path) == [("nv", "test"), ("mel", "train")]


def test_a_folder_beside_those_of_the_sides_is_a_problem(tmp_path: Path) -> None:
    for name in ("train/mel/a.png", "test/nv/b.png", "extra/c.png"):
        picture(tmp_path / name)
    with pytest.raises(
        SiteDataError, match=r"test, train lie.s. beside extra: expected folders of classes only"
    ):
        read.read(FoldersData(root=tmp_path), ("mel", "nv"))


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("train_set/mel/a.png", "test_set/mel/b.png"), "test_set, train_set seem to be sides of a split"),
        (("trn/mel/a.png", "Eval/nv/b.png", "tst/nv/c.png"), "Eval, trn, tst seem to be sides"),
        (("set/train/mel/a.png", "set/test/nv/b.png"), "set would be a class, and holds test, train"),
        (("mel/train/a.png", "mel/val/b.png", "nv/c.png"), "mel would be a class, and holds train, val"),
    ],
)
def test_sides_where_classes_are_expected_are_a_problem(
    tmp_path: Path, names: tuple[str, ...], problem: str
) -> None:
    for name in names:
        picture(tmp_path / name)
    with pytest.raises(SiteDataError, match=problem):
        read.read(
            FoldersData(root=tmp_path), ("mel", "nv", "set", "train_set", "test_set", "trn", "Eval", "tst")
        )


def test_a_class_may_be_called_like_a_side_or_hold_one_folder_called_so(tmp_path: Path) -> None:
    for name in ("mel/test/a.png", "nv/b.png", "dev/c.png"):
        picture(tmp_path / name)
    assert {label for label, _ in labels(tmp_path)} == {"dev", "mel", "nv"}
    assert not read_folders(FoldersData(root=tmp_path)).problems


def test_images_outside_of_class_folders_and_empty_classes_are_named(tmp_path: Path) -> None:
    for name in ("train/mel/a.png", "train/b.png", "c.png"):
        picture(tmp_path / name)
    (tmp_path / "train" / "nv").mkdir()
    unused = {entry.kind: entry.names for entry in read_folders(FoldersData(root=tmp_path)).unused}
    assert unused == {
        "image files that lie in no folder of a class": ("c.png", "train/b.png"),
        "folders without an image": ("train/nv",),
    }


def test_a_class_is_called_the_same_in_both_forms_of_unicode(tmp_path: Path) -> None:
    picture(tmp_path / unicodedata.normalize("NFD", "Naevus_ü") / "a.png")
    assert labels(tmp_path) == [(unicodedata.normalize("NFC", "Naevus_ü"), None)]
    data = FoldersData(root=tmp_path, label_map={unicodedata.normalize("NFD", "Naevus_ü"): "nv"})
    assert [row.label for row in read.read(data, ("nv",)).rows] == ["nv"]


@pytest.mark.parametrize(
    ("pattern", "patients"),
    [(r"/(P\d+)_", ["P1", "P1", "P2", None]), (r"P\d+", ["P1", "P1", "P2", None]), ("^(mel|nv)/", None)],
)
def test_a_pattern_over_the_path_names_the_patient(
    tmp_path: Path, pattern: str, patients: list[str | None] | None
) -> None:
    for name in ("mel/P1_1.png", "mel/P1_2.png", "nv/P2_1.png", "nv/other.png"):
        picture(tmp_path / name)
    contents = read_folders(FoldersData(root=tmp_path, group=GroupPattern(pattern=pattern)))
    assert [row.patient for row in contents.rows] == (patients or ["mel", "mel", "nv", "nv"])
    without = [entry.names for entry in contents.unused]
    assert without == ([("nv/other.png",)] if patients else [])


def test_a_patient_in_a_folder_of_the_path_that_is_a_placeholder_is_none(tmp_path: Path) -> None:
    picture(tmp_path / "mel" / "unknown" / "a.png")
    contents = read_folders(FoldersData(root=tmp_path, group=GroupPattern(pattern="mel/([^/]+)/")))
    assert contents.rows[0].patient is None
    assert contents.unused[0].kind == "images whose patient is written 'unknown', which is a placeholder"


def test_a_pattern_that_is_no_expression_is_an_error() -> None:
    with pytest.raises(ValidationError, match="is no regular expression"):
        GroupPattern(pattern="(P")
