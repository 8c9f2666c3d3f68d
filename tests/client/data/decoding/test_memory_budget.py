import threading

import pytest

from client.data.decoding import memory_budget


@pytest.mark.parametrize(("first", "second"), [(60, 40), (100, 1), (10**9, 1), (1, 10**9)])
def test_pictures_are_decoded_at_once_as_long_as_they_fit(first, second, monkeypatch):
    monkeypatch.setattr(memory_budget, "MOST_AT_ONCE", 100)
    is_in, may_go = threading.Event(), threading.Event()

    def decode() -> None:
        with memory_budget.reserved(second):
            is_in.set()
            may_go.wait(60)

    other = threading.Thread(target=decode)
    with memory_budget.reserved(first):
        other.start()
        fits = min(first, 100) + min(second, 100) <= 100
        assert is_in.wait(60 if fits else 0.05) == fits
    assert is_in.wait(60)
    may_go.set()
    other.join(60)
    assert memory_budget._taken == 0
