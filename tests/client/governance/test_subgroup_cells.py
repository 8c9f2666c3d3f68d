"""Counts by subgroup: which rows a site keeps back, and that no difference to the score of all gives one away."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.governance import score_cells, subgroup_cells
from client.governance.subgroup_cells import Placed, ScoredImages

LEAST = 3


def counted(
    rows: list[tuple[int, int, int]],
    *,
    patients: list[str] | None = None,
    num_values: int = 2,
    num_classes: int = 2,
    least_cell: int | None = None,
) -> np.ndarray:
    """Counts of images given as (value, class, predicted class), each of another patient if none are named."""
    values, labels, predicted = np.array(rows, np.int64).reshape(-1, 3).T
    names = patients or [str(place) for place in range(len(rows))]
    found = subgroup_cells.counts(
        ScoredImages(predicted, labels, names), {"sex": Placed(values, num_values)}, num_classes,
        least=LEAST, least_cell=least_cell,
    )  # fmt: skip
    return found["sex"].confusion_VCC


def of_class(*images: int) -> list[tuple[int, int, int]]:
    """So many images of class 0 for each value, the last of them without a known one; all are found."""
    values = [*range(len(images) - 1), -1]
    return [(value, 0, 0) for value, number in zip(values, images, strict=True) for _ in range(number)]


@pytest.mark.parametrize(
    ("women", "men", "unknown", "shown"),
    [
        (5, 4, 0, [5, 4]),
        (5, 4, 3, [5, 4]),
        (5, 0, 0, [5, 0]),
        (5, 2, 0, [0, 0]),  # the two men would follow from the class's 7 images, so the women go as well
        (5, 2, 1, [5, 0]),  # 3 images are in no row, and which of them are men is not known
        (5, 4, 1, [5, 0]),  # the 1 of unknown sex goes with the smaller row
        (2, 2, 0, [0, 0]),
        (0, 0, 9, [0, 0]),
    ],
)
def test_a_row_of_few_patients_goes_with_as_much_more_as_hides_it(
    women: int, men: int, unknown: int, shown: list[int]
) -> None:
    assert counted(of_class(women, men, unknown))[:, 0, 0].tolist() == shown


def test_patients_count_and_not_images() -> None:
    """Four images of two women are a row of two; with them the three men go, who else would leave a difference of 4."""
    rows = [(0, 0, 0)] * 4 + [(1, 0, 0)] * 3
    assert not counted(rows, patients=["a", "a", "b", "b", "c", "d", "e"]).any()


def test_a_row_shows_what_the_model_said() -> None:
    rows = [(0, 0, 0), (0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 0, 1), (1, 0, 1), (0, 1, 1), (0, 1, 1), (0, 1, 1)]
    assert counted(rows).tolist() == [[[2, 1], [0, 3]], [[0, 3], [0, 0]]]


def test_with_min_score_cell_no_cell_of_a_row_is_of_fewer_patients() -> None:
    """Class 0: six women and five men are found, one man is not. The score leaves his cell out, and the men with it."""
    rows = [(0, 0, 0)] * 6 + [(1, 0, 0)] * 5 + [(1, 0, 1)] + [(0, 1, 1)] * 4
    assert counted(rows)[:, 0].tolist() == [[6, 0], [5, 1]]
    # The score itself cannot show class 0: what is left out has to be of three patients, and there is one cell more.
    assert counted(rows, least_cell=3)[:, 0].tolist() == [[0, 0], [0, 0]]
    more = rows + [(1, 0, 1)] * 2
    assert counted(more, least_cell=3)[:, 0].tolist() == [[6, 0], [5, 3]]


def test_images_without_a_patient_or_a_test_are_no_mistake() -> None:
    assert counted([]).tolist() == [[[0, 0], [0, 0]], [[0, 0], [0, 0]]]


images = st.lists(
    st.tuples(st.integers(-1, 2), st.integers(0, 1), st.integers(0, 1), st.integers(0, 12)), max_size=60
)


@given(images=images, least_cell=st.sampled_from([None, 3, 4]))
def test_no_row_no_rest_and_no_difference_of_cells_is_of_few_patients(
    images: list[tuple[int, int, int, int]], least_cell: int | None
) -> None:
    values, labels, predicted, owners = np.array(images, np.int64).reshape(-1, 4).T
    patients = [str(owner) for owner in owners]
    found = counted(
        [(v, t, p) for v, t, p, _ in images], patients=patients, num_values=3, least_cell=least_cell
    )
    is_counted = np.ones(len(images), bool)
    if least_cell is not None:
        is_counted = score_cells.is_shown(predicted, labels, score_cells.numbered(patients), least_cell)
    for label in range(2):
        in_class = is_counted & (labels == label)
        total = np.array([(in_class & (predicted == place)).sum() for place in range(2)])
        rest = total - found[:, label].sum(axis=0)
        assert (rest >= 0).all()
        shown = [value for value in range(3) if found[value, label].any()]
        if not shown:
            continue  # then nothing is said that the score has not said
        if least_cell is None:
            for value in shown:  # a row is whole, and of enough patients
                row = in_class & (values == value)
                assert found[value, label].sum() == row.sum()
                assert len(set(owners[row])) >= LEAST
            others = set(owners[in_class & ~np.isin(values, shown)])
            assert len(others) == 0 or len(others) >= LEAST
        else:
            cells = np.concatenate([found[:, label].ravel(), rest])
            assert not ((cells > 0) & (cells < least_cell)).any()
        for number in [*found[:, label].sum(axis=1), rest.sum()]:
            assert number == 0 or number >= LEAST


def test_bands_are_of_one_study_only() -> None:
    """What the rule cannot stop: studies with other bands differ by the patients between their edges."""
    ages = np.array([30] * 5 + [40] + [50] * 5)
    below = [counted([(int(age >= edge), 0, 0) for age in ages])[0, 0, 0] for edge in (40, 41)]
    assert [after - before for before, after in pairwise(below)] == [1]
