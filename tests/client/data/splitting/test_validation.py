"""Validation images: cut from training images, by lesion or patient, and never from test images."""

import csv
import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from client.config import ByImageSplit, ColumnSplit, GroupedSplit, KFoldSplit, NoSplit, SplitConfig
from client.data.manifest import ImageRow, Manifest
from client.data.references import PictureFile
from client.data.splitting.kept_split import foreseen, kept
from client.data.splitting.split import split, write_split

CLASSES = ("mel", "nv")


def lesions(number: int, side: str | None = None) -> Manifest:
    """This many lesions, two images each, every other one a melanoma."""
    return Manifest(
        tuple(
            ImageRow(
                PictureFile(Path(f"/images/{image}.jpg")),
                "mel" if image // 2 % 2 else "nv",
                f"L{image // 2}",
                side,
                "row",
            )
            for image in range(2 * number)
        ),
        CLASSES,
    )


def on(manifest: Manifest, side: str) -> set[str]:
    return {row.image.key for row in manifest.rows if row.split == side}


def test_a_share_of_the_training_lesions_of_each_class_is_for_validation() -> None:
    # 50 lesions a class. A fifth, 10, test. 0.15 of the other 40 are 6 lesions, 12 images.
    done = split(lesions(100), GroupedSplit())
    assert done.class_counts("test") == (20, 20)
    assert done.class_counts("validation") == (12, 12)
    assert done.class_counts("train") == (68, 68)
    sides = {row.group: row.split for row in done.rows}
    assert all(row.split == sides[row.group] for row in done.rows)


def test_the_share_of_validation_images_does_not_change_the_test_images() -> None:
    tested = {
        frozenset(on(split(lesions(40), GroupedSplit(validation=share)), "test")) for share in (0, 0.1, 0.3)
    }
    assert len(tested) == 1
    assert split(lesions(40), GroupedSplit(validation=0)).class_counts("validation") == (0, 0)


def test_validation_images_that_come_with_the_data_are_those_of_the_study() -> None:
    published = Manifest((*lesions(10, "train").rows[:12], *lesions(10, "val").rows[12:16]), CLASSES)
    done = split(published, ColumnSplit())
    assert on(done, "validation") == {f"/images/{number}.jpg" for number in range(12, 16)}


def test_a_published_split_keeps_its_test_and_validation_is_cut_from_training(tmp_path: Path) -> None:
    published = Manifest((*lesions(40, "train").rows[:60], *lesions(40, "test").rows[60:]), CLASSES)
    done = kept(published, ColumnSplit(), tmp_path)
    assert on(done, "test") == {f"/images/{number}.jpg" for number in range(60, 80)}
    # 15 lesions a class train; 0.15 of them are 2.25, so 2 lesions of each are for validation
    assert done.class_counts("validation") == (4, 4)
    assert kept(published, ColumnSplit(), tmp_path) == done == foreseen(published, ColumnSplit(), tmp_path)
    # Ten lesions more: the validation images stay, the new ones train. What the data moves to the test side is tested.
    more = Manifest((*published.rows, *lesions(50, "train").rows[80:]), CLASSES)
    assert on(kept(more, ColumnSplit(), tmp_path), "validation") == on(done, "validation")
    moved = Manifest(tuple(lesions(40, "test").rows), CLASSES)
    assert on(kept(moved, ColumnSplit(), tmp_path), "validation") == set()


def test_a_split_of_an_earlier_version_keeps_its_test_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has another name, since it is of a split without validation images, and two sides."""
    name = hashlib.sha256(b'{"kind":"grouped","test_share":0.2,"seed":0} mel nv').hexdigest()[:12]
    path = tmp_path / "splits" / f"grouped-{name}.csv"
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "split"])
        for number in range(80):  # other lesions than a split of today would test: the first ten
            table.writerow([f"/images/{number}.jpg", "test" if number < 20 else "train"])
    done = kept(lesions(40), GroupedSplit(), tmp_path)
    assert on(done, "test") == {f"/images/{number}.jpg" for number in range(20)}
    # 15 lesions a class are left, and 2 of each are for validation
    assert done.class_counts("validation") == (4, 4)
    assert kept(lesions(40), GroupedSplit(), tmp_path) == done
    assert len(list(path.parent.iterdir())) == 2
    assert path.read_text().count("train") == 60  # the former one is as it was


def test_a_site_with_too_few_lesions_has_no_validation_images_and_trains(tmp_path: Path) -> None:
    done = kept(lesions(3), NoSplit(all="train", validation=0.15), tmp_path)
    assert (done.class_counts("train"), done.class_counts("validation")) == ((2, 4), (0, 0))


def test_a_site_may_lend_all_its_images_for_validation_and_none_twice() -> None:
    assert split(lesions(3), NoSplit(all="validation")).class_counts("validation") == (2, 4)
    with pytest.raises(ValidationError, match="is a share of training images, found all: test"):
        NoSplit(all="test", validation=0.2)


@pytest.mark.parametrize(
    "config",
    [
        GroupedSplit(stratified=False),
        KFoldSplit(fold=1, stratified=False),
        NoSplit(all="train", validation=0.3, stratified=False),
    ],
    ids=["grouped", "kfold", "none"],
)
def test_a_split_that_is_not_stratified_leaves_every_patient_where_it_is_without_another(
    config: SplitConfig,
) -> None:
    whole = split(lesions(40), config)
    assert {row.split for row in whole.rows} >= {"train", "validation"}
    for gone in ("L3", "L20"):
        fewer = split(Manifest(tuple(row for row in lesions(40).rows if row.group != gone), CLASSES), config)
        assert list(fewer.rows) == [row for row in whole.rows if row.group != gone]
    assert not config.deals_patients


def test_which_splits_deal_patients_by_what_the_others_are() -> None:
    assert GroupedSplit(validation=0).deals_patients
    assert ColumnSplit().deals_patients  # its validation images are drawn
    assert not ColumnSplit(validation=0).deals_patients
    assert not NoSplit(all="train").deals_patients


def test_a_split_by_image_cuts_validation_by_image() -> None:
    # 100 images a class: 20 test, 12 of 80 are for validation
    done = split(lesions(100), ByImageSplit())
    assert [done.class_counts(side) for side in ("train", "validation", "test")] == [
        (68, 68),
        (12, 12),
        (20, 20),
    ]


def test_a_written_split_has_three_sides_for_all_sites(tmp_path: Path) -> None:
    labels, out = tmp_path / "labels.csv", tmp_path / "new.csv"
    labels.write_text(
        "label,lesion\n" + "".join(f"{'mel' if n % 2 else 'nv'},L{n // 4}\n" for n in range(400))
    )
    write_split(labels, out, group="lesion", test_share=0.2, validation=0.25)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # 100 lesions: 20 test, a quarter of 80 is 20 for validation
    sides = {row["lesion"]: row["split"] for row in rows}
    assert sorted(list(sides.values()).count(side) for side in ("train", "validation", "test")) == [
        20,
        20,
        60,
    ]
    assert all(row["split"] == sides[row["lesion"]] for row in rows)
