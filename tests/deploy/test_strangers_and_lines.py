"""Sites that cannot take part, an untrusted certificate, and lines that are slow or cut."""

from collections.abc import Callable
from functools import partial

import pytest

from benchmarks.faults import studies
from benchmarks.faults.studies import Seen
from benchmarks.faults.world import World
from tests.deploy.faults import assert_as_expected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


STUDIES: dict[str, Callable[[World], list[Seen]]] = {
    "strangers": studies.strangers,
    "an expired certificate": studies.expired_certificate,
    "a line that is cut for longer than silence is borne": partial(studies.cut_line, seconds=30.0),
    "a slow line": partial(studies.slow_line, mbit=16.0),
}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_what_breaks_is_named_and_the_study_ends_as_it_should(
    world: World, study: Callable[[World], list[Seen]]
) -> None:
    assert_as_expected(study(world))
