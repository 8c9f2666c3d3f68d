"""A site's half of SCAFFOLD, and its files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from client.training.penalty import build_penalty
from client.training.state.control_variates import corrections, next_control
from client.training.state.local_state import SiteState
from common.config import Scaffold, StudyConfig
from common.errors import WireError

MakeStudy = Callable[..., StudyConfig]
C, OWN = {"w": np.array([5.0, 1.0])}, {"w": np.array([2.0, 2.0])}


def test_a_gradient_is_corrected_by_the_difference_of_the_control_variates() -> None:
    model = nn.Linear(2, 1, bias=False)
    correction = {"weight": corrections(C, OWN)["w"].reshape(1, 2).astype(np.float32)}
    penalty = build_penalty(Scaffold(), model, correction)
    assert penalty is not None
    torch.autograd.backward(penalty(model))
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[3.0, -1.0]]  # c - c_i, wherever the weights are


def test_without_control_variates_nothing_is_corrected() -> None:
    assert corrections({}, {}) == {}
    assert build_penalty(Scaffold(), nn.Linear(2, 1), {}) is None
    np.testing.assert_array_equal(corrections(C, {})["w"], [5.0, 1.0])
    np.testing.assert_array_equal(corrections({}, OWN)["w"], [-2.0, -2.0])


def test_control_variates_of_other_tensors_are_refused() -> None:
    with pytest.raises(WireError, match="other tensors"):
        corrections({"v": np.ones(2)}, OWN)


def test_the_next_control_variate_is_the_mean_gradient_without_its_correction() -> None:
    # Two steps of 0.1 with gradient g + (c - c_i) = g + 3 moved w by -1: g is 1 / 0.2 - 3 = 2.
    after = next_control({"w": np.array([-1.0])}, {"w": np.array([3.0])}, 0.2)
    assert after["w"] == pytest.approx([2.0])


def test_the_control_variate_of_the_last_round_that_counted_stays_on_the_disk(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    state = SiteState(tmp_path, make_study())
    for number in (1, 2, 3):
        state.keep_control_variate(number, {"w": np.full(1, float(number))}, before=number - 1)
    for number in range(4, 20):  # the server counts none of them
        state.keep_control_variate(number, {"w": np.full(1, float(number))}, before=3)
    assert state.control_variate(3)["w"] == 3
    assert state.control_variate(2)["w"] == 2  # a server that lost round 3
    assert len(list(state.folder.glob("control-*"))) == 4
    assert state.control_variate(0) == {}


def test_a_lost_control_variate_is_named_in_the_log(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("client.training.state.local_state.warn", lambda text, **_: warnings.append(text))
    state = SiteState(tmp_path, make_study())
    state.keep_control_variate(4, {"w": np.ones(1)}, before=0)
    assert state.control_variate(4)["w"] == 1
    assert not warnings
    state.forget()
    assert state.control_variate(4) == {}
    assert "control variate of round 4 is no longer in" in warnings[0]
