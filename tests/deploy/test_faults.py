"""What is done to a federation of real processes, and what must come of it.

The same studies whose rows are in docs/results/faults.md, each held to what is expected.
"""

import os
from collections.abc import Callable, Iterator

import pytest

from benchmarks.faults import studies
from benchmarks.faults.studies import Seen
from benchmarks.faults.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("faults"))
    yield made
    made.end()


def assert_as_expected(rows: list[Seen]) -> None:
    strange = [row for row in rows if not row.as_expected]
    assert rows
    assert not strange, "\n".join(f"{row.fault}: {row.said!r}, {row.ended}" for row in strange)


def test_a_bad_answer_costs_its_site_the_vote_and_the_study_nothing(world: World) -> None:
    rows = studies.bad_answers(world)
    assert_as_expected(rows)
    assert {row.ended for row in rows} == {"finished, exit code 0"}


@pytest.mark.parametrize(
    "study",
    [
        studies.all_sites_fail,
        studies.kills,
        studies.power_cut,
        studies.strangers,
        studies.expired_certificate,
        studies.cut_line,
        studies.slow_line,
    ],
    ids=lambda study: study.__name__,
)
def test_what_breaks_is_named_and_mended_or_ends_the_study_in_a_sentence(
    world: World, study: Callable[[World], list[Seen]]
) -> None:
    assert_as_expected(study(world))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root, which CI is")
def test_a_full_disk_ends_the_study_in_a_sentence_and_nothing_before_is_lost(world: World) -> None:
    assert_as_expected(studies.disk_full(world))
