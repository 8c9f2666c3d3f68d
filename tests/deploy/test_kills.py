"""Processes that are killed one after the other, each in the middle of a round."""

import pytest

from benchmarks.faults import studies
from benchmarks.faults.world import World
from tests.deploy.faults import assert_as_expected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000)]


def test_what_is_killed_comes_back_and_the_weights_are_those_of_a_calm_study(world: World) -> None:
    assert_as_expected(studies.kills(world))
