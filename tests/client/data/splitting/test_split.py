import csv
import logging
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.config import ByImageSplit, ColumnSplit, GroupedSplit, NoSplit
from client.data.manifest import ImageRow, Manifest
from client.data.references import PictureFile
from client.data.splitting.split import draw, split, write_split
from common.errors import SiteDataError

CLASSES = ("mel", "nv")


def manifest(rows: list[tuple[str, str | None, str | None]]) -> Manifest:
    """From (label, group, split) of each image."""
    return Manifest(
        tuple(
            ImageRow(PictureFile(Path(f"{number}.png")), label, group, side, f"labels.csv row {number + 2}")
            for number, (label, group, side) in enumerate(rows)
        ),
        CLASSES,
    )


def test_a_fifth_of_the_groups_of_each_class_is_for_testing():
    # 20 lesions of mel and 30 of nv, two images each: 4 and 6 lesions test, 8 and 12 images.
    rows = [("mel" if lesion < 20 else "nv", f"L{lesion}", None) for lesion in range(50) for _ in range(2)]
    done = split(manifest(rows), GroupedSplit(test_share=0.2, seed=3))
    assert done.class_counts("test") == (8, 12)
    # 0.15 of the other 16 and 24 lesions are 2.4 and 3.6: two and four lesions are for validation
    assert done.class_counts("validation") == (4, 8)
    assert done.class_counts("train") == (28, 40)
    assert done == split(manifest(rows), GroupedSplit(test_share=0.2, seed=3))
    assert done != split(manifest(rows), GroupedSplit(test_share=0.2, seed=4))


@pytest.mark.parametrize(("share", "expected"), [(0.2, 20), (0.3, 30), (0.5, 50), (0.15, 15), (0.05, 5)])
def test_the_test_share_is_met_where_groups_allow_it(share, expected):
    sides = draw(["mel"] * 50 + ["nv"] * 50, [str(number) for number in range(100)], share, seed=0)
    assert sides.count("test") == expected


@settings(max_examples=60, deadline=None)
@given(
    images=st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(0, 25)), min_size=1, max_size=80),
    share=st.sampled_from([0.05, 0.1, 0.2, 0.25, 0.3, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_group_is_ever_on_both_sides(images, share, seed):
    rows = [(label, f"L{lesion}", None) for label, lesion in images]
    try:
        done = split(manifest(rows), GroupedSplit(test_share=share, seed=seed))
    except SiteDataError:
        return  # too few to divide is an answer; one lesion on both sides is not
    sides = defaultdict(set)
    for row in done.rows:
        sides[row.group].add(row.split)
    assert all(len(on) == 1 for on in sides.values())
    assert {"train", "test"} <= {row.split for row in done.rows}


@pytest.mark.parametrize("kind", [GroupedSplit, ByImageSplit])
def test_the_same_images_in_another_folder_are_split_alike(kind):
    def sides(folder: str) -> list[str | None]:
        rows = tuple(
            ImageRow(PictureFile(Path(folder) / f"{number}.png"), CLASSES[number % 2], None, None, "")
            for number in range(100)
        )
        return [row.split for row in split(Manifest(rows, CLASSES), kind(seed=1)).rows]

    assert sides("/ward/images") == sides("/mnt/copy/of/it")
    assert sides("/ward/images").count("test") == 20


def test_images_without_a_group_count_as_one_each_and_this_is_said(caplog):
    rows = [("mel", None, None)] * 10 + [("nv", None, None)] * 10
    with caplog.at_level(logging.WARNING, "consilium"):
        done = split(manifest(rows), GroupedSplit())
    assert done.class_counts("test") == (2, 2)
    assert "20 of 20 images name no group" in caplog.text


def test_a_class_that_cannot_be_divided_is_said(caplog):
    rows = [("nv", f"L{number}", None) for number in range(20)] + [("mel", "M", None)]
    with caplog.at_level(logging.WARNING, "consilium"):
        split(manifest(rows), GroupedSplit())
    assert "class mel has 1 group(s), too few to divide: its 1 image(s) all" in caplog.text


def test_a_tiny_site_reads_what_it_would_need():
    with pytest.raises(SiteDataError, match=r"found 3 image\(s\) of 2 group\(s\); .* at least 5 groups"):
        split(manifest([("mel", "a", None), ("nv", "b", None), ("nv", "b", None)]), GroupedSplit())
    few = [(CLASSES[number % 2], f"L{number}", None) for number in range(6)]
    with pytest.raises(SiteDataError, match="each class has fewer than 5 images"):
        split(manifest(few), GroupedSplit())


def test_a_given_split_is_taken_with_its_three_sides():
    rows = [("mel", "a", "Train"), ("nv", "b", "val"), ("nv", "c", "TEST")]
    done = split(manifest(rows), ColumnSplit())
    assert [row.split for row in done.rows] == ["train", "validation", "test"]


def test_a_given_split_that_tears_a_group_apart_is_refused_with_a_count():
    rows = [("mel", "a", "train"), ("mel", "a", "test"), ("nv", "b", "train")]
    with pytest.raises(SiteDataError, match="group a is in train and in test") as caught:
        split(manifest(rows), ColumnSplit())
    assert "1 of 2 groups are on two sides" in str(caught.value)


def test_a_given_split_with_other_words_is_refused():
    rows = [("mel", "a", "train"), ("mel", "b", "fold1"), ("nv", "c", None)]
    with pytest.raises(SiteDataError, match=r"'fold1' in 1 row\(s\)") as caught:
        split(manifest(rows), ColumnSplit())
    assert "'' in 1 row(s)" in str(caught.value)
    assert "labels.csv row 3" in str(caught.value)


def test_without_a_split_everything_is_on_one_side():
    rows = [("mel", "a", "train"), ("nv", "b", None)]
    assert split(manifest(rows), NoSplit(all="test")).class_counts("test") == (1, 1)


def test_one_split_for_all_sites_is_written_beside_the_labels(tmp_path):
    lines = ["file;label;site;lesion"]
    for site in ("x", "y"):
        for lesion in range(20):
            label = CLASSES[lesion % 2]
            lines += [f"{site}{lesion}_{view}.png;{label};{site};{site}{lesion}" for view in range(2)]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    write_split(tmp_path / "labels.csv", tmp_path / "split.csv", group="lesion", strata=["site"])
    with (tmp_path / "split.csv").open() as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert [row["file"] for row in rows] == [line.split(";")[0] for line in lines[1:]]
    # Per site and class 10 lesions of 2 images: a fifth is 2 lesions, 4 images.
    tested = Counter((row["site"], row["label"]) for row in rows if row["split"] == "test")
    assert tested == {(site, label): 4 for site in ("x", "y") for label in CLASSES}
    assert len({(row["lesion"], row["split"]) for row in rows}) == 40


def test_a_column_of_patients_or_lesions_is_kept_together_without_being_named(tmp_path):
    """Or the split is refused much later, at every site, once a study begins."""
    lines = ["file,label,lesion_id,patient_id"]
    for patient in range(20):
        lines += [
            f"{patient}_{view}.png,{CLASSES[patient % 2]},{patient}-{view},{patient}" for view in range(2)
        ]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    assert write_split(tmp_path / "labels.csv", tmp_path / "split.csv") == "patient_id"
    with (tmp_path / "split.csv").open() as file:
        assert len({(row["patient_id"], row["split"]) for row in csv.DictReader(file)}) == 20


def test_columns_that_are_not_there_are_all_named_before_anything_is_written(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label,split\na.png,mel,train\n")
    with pytest.raises(SiteDataError, match="no column 'site'") as caught:
        write_split(tmp_path / "labels.csv", tmp_path / "out.csv", group="lesion", strata=["site"])
    assert "no column 'lesion'" in str(caught.value)
    assert "has a column `split` already" in str(caught.value)
    assert not (tmp_path / "out.csv").exists()
