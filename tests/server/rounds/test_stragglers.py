"""Seconds that a round waits, by hand."""

import pytest

from common.config import CutOff, Percentile, WaitForAll
from server.rounds.stragglers import nearest_rank, patience

PAST = [10.0, 20.0, 30.0, 40.0]


@pytest.mark.parametrize("grace", [WaitForAll(), CutOff(after_quorum_s=5), Percentile()])
def test_without_a_quorum_a_round_waits_until_its_deadline(grace):
    assert patience(grace, None, PAST, 100.0) == 100.0


def test_waiting_for_all_is_waiting_until_the_deadline():
    assert patience(WaitForAll(), 3.0, PAST, 100.0) == 100.0


@pytest.mark.parametrize(("quorum_after_s", "expected"), [(3.0, 8.0), (97.0, 100.0)])
def test_a_cut_off_counts_from_the_quorum_and_ends_at_the_deadline(quorum_after_s, expected):
    assert patience(CutOff(after_quorum_s=5), quorum_after_s, PAST, 100.0) == expected


@pytest.mark.parametrize(
    ("quorum_after_s", "percentile", "expected"),
    [
        (3.0, 75, 60.0),  # 30 s is the third of four, twice that
        (3.0, 100, 80.0),
        (70.0, 75, 70.0),  # who needed longer than ever for a quorum does not wait less than that
    ],
)
def test_a_percentile_is_of_past_answers_times_a_factor(quorum_after_s, percentile, expected):
    grace = Percentile(percentile=percentile, factor=2)
    assert patience(grace, quorum_after_s, PAST, 100.0) == expected


def test_the_first_round_has_no_past_and_waits_for_all():
    assert patience(Percentile(), 3.0, [], 100.0) == 100.0


@pytest.mark.parametrize(("percentile", "expected"), [(1, 10.0), (25, 10.0), (26, 20.0), (100, 40.0)])
def test_a_percentile_is_one_of_the_values(percentile, expected):
    assert nearest_rank(PAST[::-1], percentile) == expected
