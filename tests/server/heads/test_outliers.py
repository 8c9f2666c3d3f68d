"""The outlier score from sums: distances that can be worked by hand, and which counts of sites are taken."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common import wire
from common.calibration.conformal import ScoreCounts
from common.heads import identity, outliers
from common.heads.outliers import OutlierDetector
from common.wire import head_steps
from server.heads import fit, solvers
from server.heads.outliers import Outliers, detector, keep, read, record_of
from server.heads.solvers import Statistics
from tests.server.heads.test_fit import STATE, fitted, site

# Two classes of two images: (1, 0), (3, 0) and (0, 1), (0, 3). Means (2, 0) and (0, 2).
ROWS_ND = np.array([[1, 0], [3, 0], [0, 1], [0, 3]], np.float64)
SUMS = Statistics(np.array([2.0, 2.0]), np.array([[4.0, 0.0], [0.0, 4.0]]), moments_DD=ROWS_ND.T @ ROWS_ND)


def test_a_score_of_one_is_as_far_as_training_images_are_from_their_class() -> None:
    # The covariance is I / 2, whatever part of it is replaced by its mean variance. Each training image is 1 from its
    # mean, so a score is the plain distance.
    for shrinkage in (0.1, 1.0):
        found = detector(SUMS, identity(2), shrinkage)
        assert found.scores(ROWS_ND) == pytest.approx([1, 1, 1, 1])
        # (5, 0) is 3 from (2, 0); (3, 4) is the root of 17 from it, and the root of 13 from (0, 2).
        assert found.scores(np.array([[5.0, 0.0], [3.0, 4.0]])) == pytest.approx([3, 13**0.5])


def test_a_direction_in_which_images_vary_more_counts_less() -> None:
    # (+-2, +-1): variances 4 and 1; half of them replaced by their mean of 2.5 gives 3.25 and 1.75. A training image
    # has the squared distance 4 / 3.25 + 1 / 1.75, which is the unit.
    rows_ND = np.array([[2, 1], [2, -1], [-2, 1], [-2, -1]], np.float64)
    sums = Statistics(np.array([4.0, 0.0]), np.zeros((2, 2)), moments_DD=rows_ND.T @ rows_ND)
    found = detector(sums, identity(2), 0.5)
    unit = 4 / 3.25 + 1 / 1.75
    assert found.scores(np.array([[3.0, 0.0], [0.0, 3.0]])) == pytest.approx(
        [(9 / 3.25 / unit) ** 0.5, (9 / 1.75 / unit) ** 0.5]
    )
    assert len(found.centres_CD) == 1  # the other class has no images, and no centre at 0 for them


def test_a_class_with_many_images_weighs_no_more_in_the_covariance() -> None:
    """Class 0 has 4 images at +-2, class 1 has 2 at 10 +- 1: variances 4 and 1, so 2.5 on equal terms."""
    rows_N = np.array([2, 2, -2, -2, 11, 9], np.float64)
    counts_C = np.array([4.0, 2.0])
    weights_C = solvers.balanced(counts_C)  # 6 / (2 x 4) and 6 / (2 x 2)
    moments = (rows_N**2 * weights_C[[0, 0, 0, 0, 1, 1]]).sum()
    sums = Statistics(
        counts_C, np.array([[0.0], [20.0]]), moments_DD=np.array([[moments]]), weights_C=weights_C
    )
    assert solvers.within_classes(sums) == pytest.approx(2.5)
    # One feature: the mean squared distance is its variance, so -5 has the score 5 / root of 2.5.
    assert detector(sums, identity(1), 0.1).scores(np.array([[-5.0]])) == pytest.approx([5 / 2.5**0.5])


def test_images_that_are_all_alike_have_no_score() -> None:
    sums = Statistics(np.array([2.0, 2.0]), np.array([[2.0], [6.0]]), moments_DD=np.array([[2.0 + 18.0]]))
    with pytest.raises(np.linalg.LinAlgError):
        detector(sums, identity(1), 0.1)


# --- with sites --------------------------------------------------------------------------------


CLOSING = replace(STATE, closing=True)


def counting(counts: tuple[int, ...] | None) -> Any:
    """A site with an image of each class that sends some second moments, and these counts by outlier score."""
    plain = site(1.0, 2.0, 3.0)

    def answer(plan: wire.HeadPlan) -> Any:
        found = plain(plan)
        assert isinstance(found, wire.HeadAnswer)
        if isinstance(plan.step, head_steps.OutliersStep):
            assert set(plan.arrays) >= {"detector/shift", "detector/whitening", "detector/centres"}
            return found.model_copy(update={"outliers": counts})
        if isinstance(plan.step, head_steps.StatisticsStep):
            (view,) = plan.step.views
            arrays = dict(found.arrays)
            if view.moments != "none":
                arrays[f"statistics/{view.name}/moments"] = np.array([81.0])
            return found.model_copy(update={"arrays": arrays})
        return found

    return answer


def record_for(study: Any, north: Any, south: Any) -> tuple[fit.Fitted, Any]:
    found = fitted(study, north, south, CLOSING)
    assert found.outliers is not None
    return found, record_of(found.outliers, study, CLOSING)


@pytest.fixture
def study(make_study: Any) -> Any:
    return make_study(sites={"train": ("north", "south")}, out_of_distribution={"least_images": 20})


def test_counts_of_other_images_and_of_a_site_that_keeps_them_back_are_left_out(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.heads.bounds.wrong_sums", lambda *_: None)  # the sums are made up
    found, record = record_for(study, counting((1, 2)), counting(None))
    assert found.outliers is not None
    assert found.outliers.counts == {"north": ScoreCounts(images_B=(1, 2))}
    assert (record.without, record.limit, record.after_round) == (("south",), None, 3)
    assert "3 validation image(s) were counted, expected 20 or more" in record.why_none
    wrong, _ = record_for(study, counting((1, 2)), counting((3, 1)))
    assert wrong.outliers is not None
    assert list(wrong.outliers.counts) == ["north"]
    assert "of 4 validation images, expected 3 as enrolled" in wrong.record.problems["south"]


def test_no_score_is_made_before_the_end_or_without_the_setting(
    study: Any, make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.heads.bounds.wrong_sums", lambda *_: None)
    north, south = counting((1, 2)), counting((1, 2))
    assert fitted(study, north, south).outliers is None
    without = make_study(sites={"train": ("north", "south")}, heads=study.heads)
    assert fitted(without, north, south, CLOSING).outliers is None


def test_an_earlier_score_goes_when_there_is_none_any_more(study: Any, tmp_path: Any) -> None:
    made = Outliers(
        OutlierDetector(identity(1), np.eye(1), np.zeros((1, 1))),
        6.0,
        {"north": ScoreCounts(images_B=(20, 0))},
    )
    keep(tmp_path, made, study, CLOSING)
    kept = read(tmp_path, study)
    assert kept is not None
    assert (kept.num_train, kept.limit) == (6.0, pytest.approx(outliers.upper_edges(2)[0]))
    keep(tmp_path, None, study, CLOSING)
    assert read(tmp_path, study) is None
