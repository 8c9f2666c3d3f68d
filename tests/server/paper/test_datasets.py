"""Data sets that are looked for below a folder: found, missing, half there, there twice."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from server.paper.datasets import find


def ham(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "HAM10000_metadata.csv").touch()
    return folder


def test_a_data_set_is_found_some_folders_below(tmp_path: Path) -> None:
    home = ham(tmp_path / "skin" / "2018" / "ham")
    assert find(("ham10000",), tmp_path) == {
        "ham10000": str(home),
        "ham10000.metadata": str(home / "HAM10000_metadata.csv"),
    }


def test_all_that_is_missing_is_named_at_once_with_where_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find(("ham10000", "brats2019"), tmp_path)
    said = str(caught.value)
    assert "HAM10000 is not there: no folder holds HAM10000_metadata.csv or HAM10000_metadata" in said
    assert "doi:10.7910/DVN/DBW86T" in said
    assert "BraTS 2019, training data is not there: no folder holds HGG, LGG" in said


def test_a_data_set_that_is_half_there_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "brats" / "HGG").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"BraTS 2019, training data is half there: .*brats lacks LGG"):
        find(("brats2019",), tmp_path)


LABELS = ("glioma", "meningioma", "notumor", "pituitary")


def brain_mri(folder: Path) -> Path:
    for side in ("Training", "Testing"):
        for label in LABELS:
            (folder / side / label).mkdir(parents=True)
            (folder / side / label / "1.jpg").touch()
    return folder


@pytest.mark.parametrize("side", ["Training", "Testing"])
@pytest.mark.parametrize("label", LABELS)
def test_every_class_must_be_there_on_both_sides(tmp_path: Path, side: str, label: str) -> None:
    folder = brain_mri(tmp_path / "brain")
    assert find(("brain_mri",), tmp_path)["brain_mri"] == str(folder)
    (folder / side / label / "1.jpg").unlink()
    with pytest.raises(ConfigError, match=rf"is half there: there is no file in .*brain/{side}/{label}$"):
        find(("brain_mri",), tmp_path)
    (folder / side / label).rmdir()
    with pytest.raises(ConfigError, match=rf"is half there: .*brain lacks {side}/{label}$"):
        find(("brain_mri",), tmp_path)


def test_a_grade_without_a_file_is_named(tmp_path: Path) -> None:
    for grade in ("HGG", "LGG"):
        (tmp_path / grade / "patient").mkdir(parents=True)
    (tmp_path / "HGG" / "patient" / "t1.nii.gz").touch()
    with pytest.raises(ConfigError, match=r"BraTS 2019, training data is half there: .* no file in .*/LGG$"):
        find(("brats2019",), tmp_path)


def test_a_data_set_that_is_there_twice_is_not_chosen_from(tmp_path: Path) -> None:
    ham(tmp_path / "one")
    ham(tmp_path / "two")
    with pytest.raises(ConfigError, match=r"HAM10000 is there 2 times: .*one, .*two; give one with --data"):
        find(("ham10000",), tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        find(("ham10000",), tmp_path / "nowhere")
