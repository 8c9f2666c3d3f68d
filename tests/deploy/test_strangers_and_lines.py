"""Sites that cannot take part, an untrusted certificate, and lines that are slow or cut."""

from collections.abc import Callable

import pytest

from benchmarks.faults import studies
from benchmarks.faults.studies import Seen
from benchmarks.faults.world import World
from tests.deploy.faults import assert_as_expected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    "study",
    [studies.strangers, studies.expired_certificate, studies.cut_line, studies.slow_line],
    ids=lambda study: study.__name__,
)
def test_what_breaks_is_named_and_the_study_ends_as_it_should(
    world: World, study: Callable[[World], list[Seen]]
) -> None:
    assert_as_expected(study(world))
