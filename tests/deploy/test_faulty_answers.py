"""Sites that answer wrongly, too late or not at all."""

import pytest

from benchmarks.faults import studies
from benchmarks.faults.world import World
from tests.deploy.faults import assert_as_expected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2000)]


def test_a_bad_answer_costs_its_site_the_vote_and_the_study_nothing(world: World) -> None:
    rows = studies.bad_answers(world)
    assert_as_expected(rows)
    assert {row.ended for row in rows} == {"finished, exit code 0"}


def test_a_late_answer_and_none_cost_the_site_its_vote_and_the_study_nothing(world: World) -> None:
    assert_as_expected(studies.late_answers(world))


def test_a_round_in_which_every_site_fails_ends_the_study_with_the_reason(world: World) -> None:
    assert_as_expected(studies.all_sites_fail(world))
