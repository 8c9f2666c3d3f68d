"""Engines: which one a name means, and which options it takes."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from server.simulation.engines import HostedTrainer, Inline, Processes, Ray, engine


def opened(_settings: Path, _log: Path, _turn: int) -> HostedTrainer:
    raise AssertionError("no trainer is opened here")


def test_a_name_means_an_engine_and_trainers_are_loaded_only_for_one_that_runs_them_here() -> None:
    def never() -> object:
        raise AssertionError("the sites' side is not needed")

    assert engine("processes", never, port=9000) == Processes(9000)  # type: ignore[arg-type]
    assert engine("inline", lambda: opened) == Inline(opened)


def test_ray_has_as_many_workers_as_cores_unless_it_is_given_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert engine("ray", lambda: opened) == Ray(opened, 6)
    assert engine("ray", lambda: opened, workers=2, gpu_share=0.25) == Ray(opened, 2, 0.25)
    with pytest.raises(ConfigError, match="workers and gpu_share are for the engine `ray`, found 'inline'"):
        engine("inline", lambda: opened, workers=2)


def test_an_option_or_a_name_that_no_engine_has_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"port 9000 is for the engine `processes`.*leave it out"):
        engine("inline", lambda: opened, port=9000)
    with pytest.raises(ConfigError, match="found engine 'threads', expected processes, inline or ray"):
        engine("threads", lambda: opened)  # type: ignore[arg-type]
