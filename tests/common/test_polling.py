"""A wait ends when its condition is true, or at its deadline."""

import pytest

from common.polling import POLL_S, wait_until


@pytest.mark.parametrize(("misses", "pauses"), [(0, []), (2, [POLL_S, POLL_S])])
def test_a_wait_ends_when_its_condition_is_true(misses: int, pauses: list[float]) -> None:
    made: list[float] = []
    looks = iter([False] * misses + [True])
    assert wait_until(lambda: next(looks), within_s=60, pause=made.append)
    assert made == pauses


def test_a_wait_ends_at_its_deadline() -> None:
    made: list[float] = []
    assert not wait_until(lambda: False, within_s=1, poll_s=0.5, pause=made.append)
    assert made == [0.5, 0.5]


def test_without_time_to_wait_the_condition_is_checked_once() -> None:
    looks = iter([True])
    assert wait_until(lambda: next(looks), within_s=0)
    assert not wait_until(lambda: False, within_s=0)


def test_a_slow_condition_counts_against_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = iter([0.0, 3.0, 6.0]), iter([False, False])
    monkeypatch.setattr("common.polling.time.monotonic", lambda: next(clock))
    assert not wait_until(lambda: next(looks), within_s=5, pause=lambda _: None)  # 2 looks take 6 s


def test_an_error_of_the_condition_ends_the_wait() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: bool(1 / 0), within_s=60)
