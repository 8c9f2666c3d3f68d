"""Cells of few patients in a score: what is left out, and that no sum gives it away."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.governance import score_cells
from common.metrics import Score, count

LEAST = 3


def scored(cells: list[list[int]], least: int = LEAST, per_patient: int = 1) -> Score:
    """Score of so many images by true class (row) and predicted class, each patient with `per_patient` of them."""
    size, probabilities, labels = len(cells), [], []
    for label, row in enumerate(cells):
        for predicted, number in enumerate(row):
            for _ in range(number):
                others = 0.4 / (size - 1)
                probabilities.append([0.6 if place == predicted else others for place in range(size)])
                labels.append(label)
    patients = [f"{label}-{place // per_patient}" for place, label in enumerate(labels)]
    return score_cells.score(
        np.array(probabilities).reshape(-1, size),
        np.array(labels, np.int64),
        patients,
        least=least,
        num_bins=20,
    )


@pytest.mark.parametrize(
    ("row", "shown", "left_out"),
    [
        ([9, 4, 3], [9, 4, 3], 0),
        ([9, 0, 3], [9, 0, 3], 0),  # nobody is a cell of nobody
        ([9, 2, 2], [9, 0, 0], 4),  # together they are of enough patients
        ([9, 4, 1], [9, 0, 0], 5),  # the 1 would follow from the class's 14 images, so the 4 goes as well
        ([9, 0, 2], [0, 0, 0], 11),  # nothing else to go but the 9
        ([2, 0, 0], [0, 0, 0], 2),
    ],
)
def test_a_small_cell_goes_with_as_much_more_as_hides_it(
    row: list[int], shown: list[int], left_out: int
) -> None:
    score = scored([row, [0, 5, 0], [0, 0, 5]])
    assert score.confusion_CC.tolist() == [shown, [0, 5, 0], [0, 0, 5]]
    assert score.left_out_C == (left_out, 0, 0)
    assert score.images_C == (sum(row), 5, 5)


def test_patients_count_and_not_images() -> None:
    """Four images of two patients are a cell of two."""
    assert scored([[6, 0], [0, 4]], per_patient=2).confusion_CC.tolist() == [[6, 0], [0, 0]]


def test_an_image_counts_with_the_median_of_its_group() -> None:
    """Six patients by size, in two groups of three: 0.55 0.60 0.70 and 0.80 0.90 0.95."""
    sure = np.array([0.55, 0.95, 0.6, 0.7, 0.9, 0.8])
    score = score_cells.score(
        np.stack([sure, 1 - sure], axis=1), np.zeros(6, np.int64), list("abcdef"), least=3, num_bins=20
    )
    medians = np.array([0.6, 0.6, 0.6, 0.9, 0.9, 0.9])
    alone = count(np.stack([medians, 1 - medians], axis=1), np.zeros(6, np.int64), 0.0, 20)
    assert score.histogram_C2B.tolist() == alone.histogram_C2B.tolist()
    assert score.loss_sum == pytest.approx(alone.loss_sum)


def test_a_patient_with_many_images_counts_once_in_a_median() -> None:
    """One patient with five images at 0.9, two with one each at 0.55 and 0.6: the median of three patients is 0.6."""
    sure = np.array([0.9] * 5 + [0.55, 0.6])
    score = score_cells.score(
        np.stack([sure, 1 - sure], axis=1), np.zeros(7, np.int64), list("aaaaabc"), least=3, num_bins=20
    )
    assert np.flatnonzero(score.histogram_C2B[0, 1]).tolist() == [25 * 12 + 12]  # all seven in bin 12 of 20


CLASSES = 3


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(0.01, 1), min_size=CLASSES, max_size=CLASSES),
            st.integers(0, 2),
            st.integers(0, 30),
        ),
        max_size=60,
    ),
    st.integers(3, 6),
)
def test_no_cell_of_any_table_is_of_fewer_patients_and_every_image_is_accounted_for(
    images: list[tuple[list[float], int, int]], least: int
) -> None:
    raw = np.array([image[0] for image in images]).reshape(-1, CLASSES)
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    labels = np.array([image[1] for image in images], np.int64)
    patients = [str(image[2]) for image in images]
    score = score_cells.score(probabilities, labels, patients, least=least, num_bins=20)
    Score.model_validate(score.model_dump())  # the tables are of the same images
    assert score.images_C == tuple(Counter(labels.tolist())[place] for place in range(CLASSES))
    tables = (score.confusion_CC, score.histogram_C2B, score.calibration_2K)
    cells = [int(cell) for table in tables for cell in table.ravel()]
    assert all(cell == 0 or cell >= least for cell in cells)
    # What is left out of a class is of enough patients as well, or it is the whole class.
    predicted = probabilities.argmax(axis=1)
    for label in range(CLASSES):
        hidden = [
            patient
            for patient, own, said in zip(patients, labels, predicted, strict=True)
            if own == label and score.confusion_CC[label, said] == 0
        ]
        assert len(set(hidden)) >= least or not hidden or not score.confusion_CC[label].any()


@given(st.permutations(list(range(12))))
def test_the_order_of_the_images_does_not_matter(order: list[int]) -> None:
    draws = np.random.default_rng(0)
    sure, patients = draws.random(12), np.array([f"p{place // 2}" for place in range(12)])
    probabilities, labels = np.stack([sure, 1 - sure], axis=1), np.arange(12) % 2
    scores = [
        score_cells.score(probabilities[at], labels[at], patients[at].tolist(), least=3, num_bins=20)
        for at in (list(range(12)), order)
    ]
    assert scores[0].confusion_CC.tolist() == scores[1].confusion_CC.tolist()
    assert scores[0].histogram_C2B.tolist() == scores[1].histogram_C2B.tolist()
    assert scores[0].left_out_C == scores[1].left_out_C


def test_without_images_there_is_nothing_to_leave_out() -> None:
    score = score_cells.score(np.zeros((0, 2)), np.zeros(0, np.int64), [], least=3, num_bins=20)
    assert score.num_images == 0
    assert score.images_C == (0, 0)
