"""What was drawn once is drawn for good, and no group is ever on two sides."""

import logging
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from client.config import ByImageSplit, GroupedSplit, KFoldSplit, NoSplit
from client.data.manifest import ImageRow, Manifest
from client.data.references import PictureFile
from client.data.splitting import split as drawing
from client.data.splitting.kept_split import kept
from client.data.splitting.split import split
from common.errors import SiteDataError


@pytest.fixture(autouse=True)
def _log_to_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)


def rows(start: int, stop: int, group_of: int = 2) -> tuple[ImageRow, ...]:
    """Images `start` to `stop`, two of each lesion, every other lesion a melanoma."""
    return tuple(
        ImageRow(
            PictureFile(Path(f"/images/{n}.jpg")),
            "mel" if n // group_of % 2 else "nv",
            f"L{n // group_of}",
            None,
            f"row {n}",
        )
        for n in range(start, stop)
    )


def sides(manifest: Manifest) -> dict[str, str | None]:
    return {row.image.path.stem: row.split for row in manifest.rows}


CLASSES = ("mel", "nv")


def test_a_split_is_drawn_once_and_read_ever_after(tmp_path, monkeypatch):
    first = kept(Manifest(rows(0, 40), CLASSES), GroupedSplit(), tmp_path)
    monkeypatch.setattr(drawing, "deal", None)  # nothing is drawn any more
    assert kept(Manifest(rows(0, 40), CLASSES), GroupedSplit(), tmp_path) == first


def test_images_that_came_later_follow_their_lesion_and_the_others_train(tmp_path, caplog):
    # 39 images: of lesion 19 the first one only
    before = sides(kept(Manifest(rows(0, 39), CLASSES), GroupedSplit(), tmp_path))
    after = sides(kept(Manifest(rows(0, 60), CLASSES), GroupedSplit(), tmp_path))
    assert {name: after[name] for name in before} == before
    assert after["39"] == before["38"]
    assert {after[str(number)] for number in range(40, 60)} == {"train"}
    assert "21 image(s) came after the split was drawn" in caplog.text
    # and they stay, too
    assert sides(kept(Manifest(rows(0, 60), CLASSES), GroupedSplit(), tmp_path)) == after


def test_images_that_are_gone_move_no_other(tmp_path):
    before = sides(kept(Manifest(rows(0, 40), CLASSES), GroupedSplit(), tmp_path))
    after = sides(kept(Manifest(rows(10, 40), CLASSES), GroupedSplit(), tmp_path))
    assert after == {name: side for name, side in before.items() if int(name) >= 10}
    assert sides(kept(Manifest(rows(0, 40), CLASSES), GroupedSplit(), tmp_path)) == before


def test_another_seed_and_other_classes_have_splits_of_their_own(tmp_path):
    for config, classes in (
        (GroupedSplit(), CLASSES),
        (GroupedSplit(seed=1), CLASSES),
        (GroupedSplit(), ("nv", "mel")),
    ):
        kept(Manifest(rows(0, 40), classes), config, tmp_path)
    assert len(list((tmp_path / "splits").iterdir())) == 3


def test_a_split_that_somebody_edited_is_not_drawn_again_behind_their_back(tmp_path):
    kept(Manifest(rows(0, 40), CLASSES), GroupedSplit(), tmp_path)
    (file,) = (tmp_path / "splits").iterdir()
    file.write_text(file.read_text().replace(",test", ",maybe"))
    with pytest.raises(SiteDataError, match="put it back from a copy, or remove it to draw a new split"):
        kept(Manifest(rows(0, 40), CLASSES), GroupedSplit(), tmp_path)


def test_what_is_not_drawn_is_not_kept(tmp_path):
    kept(Manifest(rows(0, 4), CLASSES), NoSplit(all="test"), tmp_path)
    assert not (tmp_path / "splits").exists()


def test_every_image_is_tested_on_in_one_fold():
    tested: list[str] = []
    for fold in range(4):
        drawn = split(Manifest(rows(0, 40), CLASSES), KFoldSplit(folds=4, fold=fold))
        tested += [name for name, side in sides(drawn).items() if side == "test"]
    assert sorted(tested) == sorted(str(number) for number in range(40))


def test_a_fold_that_does_not_exist_is_named():
    with pytest.raises(ValidationError, match="fold=5 of folds=5; expected 0 to 4"):
        KFoldSplit(fold=5)


def test_a_split_by_image_says_how_many_lesions_it_tears_apart(caplog):
    drawn = split(Manifest(rows(0, 40), CLASSES), ByImageSplit())
    on: dict[str | None, set[str | None]] = {}
    for row in drawn.rows:
        on.setdefault(row.group, set()).add("test" if row.split == "test" else "rest")
    torn = sum(len(found) == 2 for found in on.values())
    assert torn > 0
    assert f"by_image: {torn} of 20 lesions or patients are on both sides" in caplog.text
    assert drawn.class_counts("test") == (4, 4)  # a fifth of 20 each


splits = st.sampled_from([GroupedSplit(), GroupedSplit(test_share=0.4, seed=7), KFoldSplit(folds=3, fold=1)])


@given(
    st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(0, 30)), min_size=30, max_size=120),
    splits,
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_no_group_is_ever_on_two_sides_and_a_seed_draws_the_same_again(found, config):
    images = [
        ImageRow(PictureFile(Path(f"/images/{n}.jpg")), label, f"L{group}", None, f"row {n}")
        for n, (label, group) in enumerate(found)
    ]
    try:
        drawn = split(Manifest(tuple(images), CLASSES), config)
    except SiteDataError:
        return  # too few groups, or classes, for such a split: refused, not torn
    on: dict[str | None, set[str | None]] = {}
    for row in drawn.rows:
        on.setdefault(row.group, set()).add(row.split)
    assert {len(sides_) for sides_ in on.values()} == {1}
    again = split(Manifest(tuple(images), CLASSES), config)
    assert again == drawn


def test_lesions_that_turn_out_to_be_one_patients_on_two_sides_are_refused(tmp_path):
    before = kept(Manifest(rows(0, 40), CLASSES), GroupedSplit(), tmp_path).rows
    one_of_each = {next(row.group for row in before if row.split == side) for side in ("train", "test")}
    joined = tuple(
        replace(row, group="patient P1" if row.group in one_of_each else row.group) for row in rows(0, 40)
    )
    with pytest.raises(
        SiteDataError, match=r"1 patient\(s\) or lesion\(s\) have images on two sides .* patient P1"
    ):
        kept(Manifest(joined, CLASSES), GroupedSplit(), tmp_path)
    assert kept(Manifest(rows(0, 40), CLASSES), GroupedSplit(), tmp_path).rows == before


@given(
    st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(0, 30)), min_size=40, max_size=80),
    st.integers(20, 40),
    splits,
)
@settings(derandomize=True, deadline=None, max_examples=30)
def test_no_group_is_on_two_sides_of_a_kept_split_that_grows(found, num_first, config):
    images = tuple(
        ImageRow(PictureFile(Path(f"/images/{n}.jpg")), label, f"L{group}", None, f"row {n}")
        for n, (label, group) in enumerate(found)
    )
    with (
        tempfile.TemporaryDirectory() as state_dir,
        suppress(SiteDataError),
    ):  # too few to divide is an answer
        first = kept(Manifest(images[:num_first], CLASSES), config, Path(state_dir))
        grown = kept(Manifest(images, CLASSES), config, Path(state_dir))
        assert grown.rows[:num_first] == first.rows
        assert drawing.groups_on_both_sides(grown.rows) == []
