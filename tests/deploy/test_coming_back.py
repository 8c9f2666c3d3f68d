"""Deaths that meet: what is being brought back dies once more, and the study ends as if nothing had been."""

from collections.abc import Iterator

import pytest

from benchmarks.faults.world import World, soon
from server import overview

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("back"))
    yield made
    made.end()


def test_a_superlink_that_lost_its_database_and_a_gateway_die_and_it_dies_again_on_its_way_back(
    world: World,
) -> None:
    calm = world.launch("calm")
    assert calm.end() == 0, calm.said()

    launch = world.launch("hurt")
    launch.wait_for("round 2 of 3: ")
    for file in (launch.run_dir / "federation").glob("superlink.db*"):
        file.unlink()
    launch.kill(launch.processes("north-gateway")[0], launch.processes("superlink")[0])
    launch.wait_for("keys are enrolled again")
    soon(lambda: overview.look(launch.run_dir).stage == "starting", "a status that says so", 60)
    launch.kill(launch.processes("superlink")[0])

    assert launch.end() == 0, launch.said()
    assert launch.weights() == calm.weights()
    told = (launch.run_dir / "launcher.log").read_text()
    assert "north-gateway was ended by SIGKILL; starting it again in 1 s (restart 1 of at most 10)" in told
    assert "superlink was ended by SIGKILL; starting it again in 2 s (restart 2 of at most 10)" in told
