"""A folder of sites for the tests of one file, whose studies are started as real processes."""

from collections.abc import Iterator, Mapping

import pytest

from benchmarks.faults.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, launchers_env: Mapping[str, str]) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"), launchers_env)
    yield made
    made.end()
