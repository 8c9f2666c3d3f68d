"""The outlier score and its limit, with distances and counts that can be worked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.calibration.conformal import ScoreCounts
from common.errors import SiteDataError, WireError
from common.heads import View
from common.heads.outliers import (
    FILE,
    OutlierDetector,
    OutlierRecord,
    counted,
    limit_of,
    load,
    read_detector,
    save,
    upper_edges,
)
from common.weights import load_file, save_file

# The first feature counts half. Class means are at (2, 0) and (0, 3), so at (1, 0) and (0, 3) in these units.
DETECTOR = OutlierDetector(
    View(np.zeros(2), np.ones(2)), np.diag([0.5, 1.0]), np.array([[1.0, 0.0], [0.0, 3.0]])
)
RECORD = OutlierRecord(
    weights_sha256="ab", after_round=3, shrinkage=0.1, num_train=600, flagged=0.05, limit=2.0,
    sites={"north": ScoreCounts(images_B=(38, 2))}, without=("south",),
)  # fmt: skip


def test_the_score_is_the_distance_to_the_nearest_class() -> None:
    # (4, 0) is (2, 0) in these units, 1 from the first class. (0, 4) is 1 from the second one. (2, 0) is a mean.
    found = DETECTOR.scores(np.array([[4, 0], [0, 4], [2, 0], [8, 0]], np.float32))
    assert found.tolist() == [1, 1, 0, 3]
    assert DETECTOR.scores(np.zeros((0, 2), np.float32)).tolist() == []
    with pytest.raises(WireError, match="found features of width 3, expected 2"):
        DETECTOR.scores(np.zeros((1, 3), np.float32))


def test_bins_are_equally_wide_in_the_logarithm_and_the_ends_hold_what_lies_beyond() -> None:
    assert upper_edges(4) == pytest.approx((1, 2, 4, 8))
    assert counted(np.array([0.0, 0.9, 1.5, 3.0, 100.0]), 4).images_B == (2, 1, 1, 1)
    assert counted(np.zeros(0), 4).images_B == (0, 0, 0, 0)


def test_the_limit_is_the_edge_beyond_which_no_more_than_the_stated_share_lies() -> None:
    # 40 images: the rank is ceil(41 x 0.95) = 39, and the 39th smallest score is in the bin that ends at 2.
    assert limit_of({"north": ScoreCounts(images_B=(38, 1, 1, 0))}, 0.05, 20) == (pytest.approx(2), "")
    # Two sites with bins of their own: below 1, 2, 4, 8 and below 2, 8. 20 + 18 images are below 2, one is below 4.
    sites = {"north": ScoreCounts(images_B=(10, 10, 1, 0)), "south": ScoreCounts(images_B=(18, 1))}
    assert limit_of(sites, 0.05, 20)[0] == pytest.approx(4)


@pytest.mark.parametrize(
    ("images", "least", "said"),
    [
        ((30, 0), 50, "30 validation image(s) were counted, expected 50 or more"),
        ((18, 0), 10, "18 validation image(s) are too few for 5 %"),  # the rank would be ceil(19 x 0.95) = 19
        ((30, 10), 20, "more than 5 % of the validation images have a score beyond 8"),
        ((), 20, "0 validation image(s)"),
    ],
)
def test_a_limit_that_the_counts_do_not_support_is_none_with_a_reason(
    images: tuple[int, ...], least: int, said: str
) -> None:
    limit, why = limit_of({"north": ScoreCounts(images_B=images)} if images else {}, 0.05, least)
    assert limit is None
    assert said in why


def test_an_image_beyond_the_limit_is_unlike_the_training_images() -> None:
    assert [RECORD.is_unlike(score) for score in (1.9, 2.0, 2.1)] == [False, False, True]
    assert "above 2 an image is flagged" in RECORD.describe()
    assert "at most 5 % of images like the 40 validation images of north" in RECORD.describe()
    none = RECORD.model_copy(update={"limit": None, "why_none": "too few"})
    assert none.is_unlike(9.0) is None
    assert "no image is flagged: too few" in none.describe()


def test_a_run_keeps_detector_and_record_in_one_file(tmp_path: Path) -> None:
    assert load(tmp_path, 2) is None
    save(tmp_path, DETECTOR, RECORD)
    found = load(tmp_path, 2)
    assert found is not None
    assert found[1] == RECORD
    assert found[0].scores(np.array([[4, 0]], np.float32)).tolist() == [1]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save(tmp_path, DETECTOR, RECORD)
    arrays, label = load_file(tmp_path / FILE)
    for changed, about in ((dict(arrays), {}), ({"shift": arrays["shift"]}, dict(label))):
        save_file(tmp_path / FILE, changed, about)
        with pytest.raises(SiteDataError, match="is no outlier score of this version"):
            load(tmp_path, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"whitening": np.eye(3)}, r"whitening is \[3, 3\], expected \[2, 2\]"),
        ({"centres": np.zeros((2, 3))}, r"centres are \[2, 3\], expected 1 to 2 of width 2"),
        ({"centres": np.zeros((3, 2))}, "expected 1 to 2 of width 2"),
        ({"centres": np.full((1, 2), np.nan)}, "not made of finite numbers"),
        ({"components": np.eye(2)}, "expected those of an outlier score"),
        ({"scale": np.zeros(2)}, "not positive"),
    ],
)
def test_arrays_that_are_no_detector_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(WireError, match=said):
        read_detector({**DETECTOR.arrays(), **changes}, 2)
