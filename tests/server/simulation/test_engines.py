"""Engines: which one a name means, and which options it takes."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from server.simulation.engines import HostedTrainer, Inline, Processes, engine


def opened(_settings: Path, _log: Path, _turn: int) -> HostedTrainer:
    raise AssertionError("no trainer is opened here")


def test_a_name_means_an_engine_and_trainers_are_loaded_only_for_one_that_runs_them_here() -> None:
    def never() -> object:
        raise AssertionError("the sites' side is not needed")

    assert engine("processes", never, port=9000) == Processes(9000)  # type: ignore[arg-type]
    assert engine("inline", lambda: opened) == Inline(opened)


def test_an_option_or_a_name_that_no_engine_has_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"port 9000 is for the engine `processes`.*leave it out"):
        engine("inline", lambda: opened, port=9000)
    with pytest.raises(ConfigError, match="found engine 'threads', expected processes or inline"):
        engine("threads", lambda: opened)  # type: ignore[arg-type]
