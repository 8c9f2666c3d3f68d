"""What is said about the classes of a site's data, before anything is decoded."""

from dataclasses import replace
from pathlib import Path

import pytest

from client.config import CsvData, DataConfig, DicomData, FoldersData, IsicData, MedMnistData, SiteConfig
from client.data.manifest import ImageRow, Manifest, grouped
from client.data.references import PictureFile
from client.preflight.classes_and_split import of_classes, on_sides
from client.preflight.findings import Finding

FOLDERS = FoldersData(root=Path("data"))


def manifest(*classes: str) -> Manifest:
    rows = [ImageRow(PictureFile(Path(f"{name}.png")), name, f"P {name}", None, name) for name in classes]
    return Manifest(tuple(rows), classes)


@pytest.mark.parametrize(
    ("classes", "alike"),
    [
        (("MEL", "Mel", "nv"), ("MEL = Mel",)),
        (("basal cell", "basal-cell", "Basal_Cell", "x"), ("basal cell = basal-cell = Basal_Cell",)),
        (("0", "1", "1.0", "01"), ("1 = 1.0 = 01",)),
        (("mel", "mel\u200b", "nv"), ("mel = mel\u200b",)),  # a sign that is not seen
        (("1-2", "12", "+", "-", "mel", "nv"), None),
    ],
)
def test_classes_that_look_like_one_are_named(
    classes: tuple[str, ...], alike: tuple[str, ...] | None
) -> None:
    found = [
        finding.items
        for finding in of_classes(manifest(*classes), FOLDERS)
        if "large letters" in finding.what
    ]
    assert found == ([] if alike is None else [alike])


def test_a_single_class_is_worth_a_look() -> None:
    """A folder above the classes, or a column that is not the label."""
    assert any(
        "all images are of one class, images" in one.what for one in of_classes(manifest("images"), FOLDERS)
    )
    assert not any("one class" in one.what for one in of_classes(manifest("mel", "nv"), FOLDERS))


def test_what_a_name_would_do_to_a_terminal_is_written_as_its_escape() -> None:
    text = Finding("look", "not used: \x1b[2J", ("a\nWARNING: all is well.png",)).text
    assert text == "not used: \\x1b[2J:\n  a\\nWARNING: all is well.png"


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (FOLDERS, "say in the site's YAML how the path names it (data.group.pattern)"),
        (
            CsvData(labels=Path("l.csv")),
            "name the column in the site's YAML (data.columns.patient), or fill it",
        ),
        (
            IsicData(kind="isic2018", ground_truth=Path("g.csv"), images=Path("i")),
            "name the challenge's metadata",
        ),
        (DicomData(root=Path("d"), labels=Path("l.csv")), "their PatientID is empty or a placeholder"),
        (MedMnistData(archive=Path("a.npz")), "the published set does not name any"),
    ],
)
def test_images_without_a_patient_are_counted_with_what_this_kind_of_data_can_do(
    data: DataConfig, remedy: str
) -> None:
    rows = tuple(replace(row, group=None) for row in manifest("mel", "nv").rows)
    (text,) = [
        one.what for one in of_classes(Manifest(rows, ("mel", "nv")), data) if "no patient" in one.what
    ]
    assert text.startswith("2 of 2 images (100%) name no patient or lesion: ")
    assert remedy in text


@pytest.mark.parametrize(
    ("kind", "is_said"), [("grouped", True), ("by_image", True), ("column", False), ("none", False)]
)
def test_sides_that_the_data_state_and_the_settings_do_not_use_are_said(
    tmp_path: Path, kind: str, is_said: bool
) -> None:
    """Folders train and test, or a published fold, under the default split."""
    sides = ["train"] * 9 + ["test"] * 6
    rows = [
        ImageRow(PictureFile(tmp_path / f"{n}.png"), ("mel", "nv")[n % 2], None, side, f"row {n}", f"P{n}")
        for n, side in enumerate(sides)
    ]
    split = {"kind": kind, **({"all": "train"} if kind == "none" else {})}
    site = SiteConfig.model_validate({"name": "n", "data": FOLDERS, "split": split, "state_dir": tmp_path})
    _, found = on_sides(Manifest(tuple(grouped(rows)), ("mel", "nv")), site)
    texts = [finding.what for finding in found if "state a side" in finding.what]
    assert texts == is_said * [
        "the data state a side of the split for 15 of 15 images (test 6, train 9), and "
        f"`split.kind: {kind}` does not use it; take `column` to keep the published split"
    ]
