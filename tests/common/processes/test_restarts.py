"""Restarts on a clock that the test turns."""

import pytest

from common.processes.restarts import MOST, WINDOW_S, Ended, Supervision, how, sites_of


def test_a_process_that_ended_is_started_again_after_a_pause_and_reported_once():
    watched = Supervision()
    assert watched.see({"north-trainer": -9}, 100.0) == [
        Ended("north-trainer", "was ended by SIGKILL", pause_s=1.0, number=1)
    ]
    assert watched.see({"north-trainer": -9}, 100.5) == []
    assert watched.due(100.9) == []
    assert watched.due(101.0) == ["north-trainer"]
    assert watched.due(102.0) == []


def test_each_pause_is_twice_the_last_one():
    watched, now = Supervision(), 0.0
    pauses = []
    for _ in range(MOST):
        (ended,) = watched.see({"superlink": 1}, now)
        pauses.append(ended.pause_s)
        now += ended.pause_s
        assert watched.due(now) == ["superlink"]
    assert pauses == [1, 2, 4, 8, 15, 15, 15, 15, 15, 15]


def test_a_process_that_keeps_dying_is_given_up():
    watched = Supervision()
    for second in range(MOST):
        watched.see({"north-trainer": 1}, 50.0 * second)
        watched.due(50.0 * second + 49)
    (last,) = watched.see({"north-trainer": 1}, 50.0 * MOST)
    assert last.is_final
    assert watched.given_up == {"north-trainer"}
    assert watched.due(1e9) == []
    assert watched.see({"north-trainer": 1}, 1e9) == []


def test_what_died_long_ago_counts_no_more():
    watched = Supervision()
    for number in range(3 * MOST):
        now = number * (WINDOW_S + 1)
        (ended,) = watched.see({"north-trainer": 1}, now)
        assert ended.number == 1
        watched.due(now + 2)


@pytest.mark.parametrize(
    ("code", "told"),
    [(0, "ended with exit code 0"), (-15, "was ended by SIGTERM"), (-99, "was ended by signal 99")],
)
def test_an_end_is_described_as_a_person_would(code, told):
    assert how(code) == told


def test_sites_are_known_by_their_processes():
    assert sites_of(["north-east-trainer", "south-gateway", "superlink"]) == {"north-east", "south"}
