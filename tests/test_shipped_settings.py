"""Every YAML that ships is loaded by the code that a user would load it with."""

import math
from pathlib import Path

import pytest

from client.config import load_site
from common.config import StudyConfig
from common.settings import load_settings
from server.config import FederationConfig
from server.paper.experiment import Experiment
from server.simulation.grid import Grid, studies
from tests.places import CONFIGS

SHIPPED = sorted(CONFIGS.rglob("*.yaml"))  # those of other programs end in .yml


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_yaml_is_valid(path: Path) -> None:
    match path.parent.name:
        case "study":
            assert load_settings(path, StudyConfig, "study").name == path.stem
        case "site":
            load_site(path)
        case "paper":
            experiment = load_settings(path, Experiment, "experiment")
            assert experiment.name == path.stem
        case "grid":
            grid = load_settings(path, Grid, "grid")
            assert grid.name == path.stem
            rows = max(1, len(grid.variants)) * math.prod(map(len, grid.axes.values()))
            assert len(studies(grid, path.name)) == rows * len(grid.seeds)
        case "server":
            load_settings(path, FederationConfig, "federation")
        case folder:
            pytest.fail(f"nothing loads YAMLs of configs/{folder}")


def test_some_of_each_kind_ship() -> None:
    assert {path.parent.name for path in SHIPPED} >= {"study", "site", "grid", "paper"}
