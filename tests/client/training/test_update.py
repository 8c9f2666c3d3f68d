import numpy as np
import pytest

from client.training.update import delta, relative_change
from common.errors import WireError


def test_the_first_step_is_trained_minus_received():
    trained, received = {"w": np.array([1.0, 5.0])}, {"w": np.array([0.5, 7.0])}
    assert delta(trained, received)["w"].tolist() == [0.5, -2.0]


def test_further_steps_follow_in_their_order():
    trained, received = {"w": np.array([3.0])}, {"w": np.array([1.0])}
    steps = [lambda a: {"w": a["w"] + 1}, lambda a: {"w": a["w"] * 10}]
    assert delta(trained, received, steps)["w"].tolist() == [30.0]  # (3 - 1 + 1) * 10


def test_other_names_than_received_are_refused():
    with pytest.raises(WireError, match="tensor b is on one side only"):
        delta({"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.zeros(1)})


def test_a_change_is_a_share_of_the_norm_before_over_the_named_tensors_by_hand():
    """From (3, 4), of norm 5, to (3, 7): 3 of 5. What is not named, or not there any more, does not count."""
    before = {"w": np.array([3.0, 4.0]), "mean": np.array([1.0]), "gone": np.array([1.0])}
    now = {"w": np.array([3.0, 7.0]), "mean": np.array([1e9])}
    assert relative_change(before, now, {"w", "gone"}) == pytest.approx(3 / 5)
    assert relative_change({"w": np.zeros(2)}, now, {"w"}) == 0
