"""Deaths that meet, a power cut and a full disk: the study ends as if nothing had been."""

import os

import pytest

from benchmarks.faults import studies
from benchmarks.faults.launch import Plan
from benchmarks.faults.world import Launch, World, soon
from server.deployment import overview
from tests.deploy.faults import assert_as_expected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_after_a_power_cut_a_study_is_resumed_to_the_same_weights(world: World) -> None:
    assert_as_expected(studies.power_cut(world))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root, which CI is")
def test_a_full_disk_ends_the_study_in_a_sentence_and_nothing_before_is_lost(world: World) -> None:
    assert_as_expected(studies.disk_full(world))


def test_a_superlink_that_lost_its_database_and_a_gateway_die_and_it_dies_again_on_its_way_back(
    world: World,
) -> None:
    gate = world.gate("hurt", 1)
    launch = world.launch("hurt", Plan(gates={"north": gate.folder}))
    launch.wait_until_held(gate, 2)
    for file in (launch.run_dir / "federation").glob("superlink.db*"):
        file.unlink()
    launch.kill(launch.processes("north-gateway")[0], launch.processes("superlink")[0])
    launch.wait_for("keys are enrolled again")
    soon(lambda: _is_started_again(launch), "the study's second start", 120)
    launch.kill(launch.processes("superlink")[0])
    gate.open()

    assert launch.end() == 0, launch.said()
    assert launch.weights() == world.calm_weights(3)
    told = (launch.run_dir / "launcher.log").read_text()
    assert "north-gateway was ended by SIGKILL; starting it again in 1 s (restart 1 of at most 10)" in told
    assert "superlink was ended by SIGKILL; starting it again in 2 s (restart 2 of at most 10)" in told


def _is_started_again(launch: Launch) -> bool:
    """From the moment on: round 2 is held, so the study cannot get further than into it."""
    return overview.read_run(launch.run_dir).stage == "starting" or "resuming after round 1" in launch.said()
