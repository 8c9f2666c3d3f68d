"""A folder of sites for the tests of one file, whose studies are started as real processes.

One test process has the templates of a simulation for all its studies, so they import torch and Flower once.
"""

from collections.abc import Iterator, Mapping

import pytest

from benchmarks.faults.world import ENV, ROOT, World
from common.processes import forked
from common.processes.flower import environment
from server.simulation.local_federation import TEMPLATES


@pytest.fixture(scope="session")
def launchers_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Environment of launchers that share templates."""
    folder = tmp_path_factory.mktemp("templates")
    env = environment(folder, ENV)
    with forked.sharing(TEMPLATES, env, folder, ROOT) as shared:
        yield {**ENV, **shared}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, launchers_env: Mapping[str, str]) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"), launchers_env)
    yield made
    made.end()
