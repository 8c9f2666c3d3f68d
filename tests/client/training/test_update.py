import numpy as np
import pytest

from client.training.update import delta
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
