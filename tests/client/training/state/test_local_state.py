"""Layers that stay at a site, on its disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.training.state.local_state import SiteState
from common.config import StudyConfig
from common.errors import StorageError

MakeStudy = Callable[..., StudyConfig]


def test_local_layers_are_replaced_whole_or_not_at_all(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SiteState(tmp_path, make_study())
    assert state.local_arrays(before_round=9) is None
    state.keep_local(1, {"bn": np.arange(3.0)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            state.keep_local(1, {"bn": np.arange(4.0)})
    kept = state.local_arrays(before_round=2)
    assert kept is not None
    np.testing.assert_array_equal(kept["bn"], [0.0, 1.0, 2.0])
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    state.forget()
    state.forget()  # nothing there is nothing to forget
    assert state.local_arrays(before_round=9) is None


def test_local_layers_of_one_study_are_not_anothers(make_study: MakeStudy, tmp_path: Path) -> None:
    SiteState(tmp_path, make_study()).keep_local(1, {"bn": np.ones(1)})
    assert SiteState(tmp_path, make_study(seed=4)).local_arrays(before_round=2) is None


def test_a_site_that_missed_the_best_round_keeps_what_the_round_before_it_left(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """The study has chosen round 3, in which this site did not train."""
    state = SiteState(tmp_path, make_study())
    for number in (1, 2, 4, 5, 6):
        state.keep_local(number, {"bn": np.full(1, float(number))}, best=3 if number > 3 else None)
    tested = state.local_arrays(before_round=4)
    assert tested is not None
    assert tested["bn"].tolist() == [2.0]
