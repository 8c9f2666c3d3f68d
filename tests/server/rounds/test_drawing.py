"""Drawing of a round's training sites."""

import re
from collections.abc import Callable

import pytest

from common.config import StudyConfig
from server.rounds.drawing import drawn

MakeStudy = Callable[..., StudyConfig]
NAMES = tuple(f"s{number}" for number in range(10))


def test_every_site_is_asked_unless_the_study_says_how_many(make_study: MakeStudy) -> None:
    assert drawn(make_study(sites={"train": NAMES}), NAMES, 1) == set(NAMES)
    few = make_study(sites={"train": NAMES, "per_round": 4})
    assert drawn(few, NAMES[:4], 1) == set(NAMES[:4])
    assert drawn(few, NAMES[:2], 1) == set(NAMES[:2])


def test_a_draw_follows_from_seed_round_and_sites_and_from_nothing_else(make_study: MakeStudy) -> None:
    study = make_study(sites={"train": NAMES, "per_round": 3})
    rounds = [drawn(study, NAMES, number) for number in range(1, 41)]
    assert {len(sites) for sites in rounds} == {3}
    assert rounds == [drawn(study, NAMES[::-1], number) for number in range(1, 41)]
    assert rounds != [drawn(make_study(sites=study.sites, seed=4), NAMES, number) for number in range(1, 41)]
    # 40 rounds of 3 out of 10: 12 draws a site on average, and none is forgotten or preferred.
    counts = [sum(name in sites for sites in rounds) for name in NAMES]
    assert sum(counts) == 120
    assert 4 <= min(counts) <= max(counts) <= 20


def test_a_quorum_is_of_the_sites_that_are_asked(make_study: MakeStudy) -> None:
    assert make_study(sites={"train": NAMES, "per_round": 3}).sites.quorum == 3
    assert make_study(sites={"train": NAMES, "per_round": 3, "required": 2}).sites.quorum == 2
    assert make_study(sites={"train": NAMES}).sites.quorum == 10


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sites": {"train": NAMES, "per_round": 11}}, "per_round=11 can never be drawn from 10 training"),
        (
            {"sites": {"train": NAMES, "per_round": 3, "required": 4}},
            "required=4 can never be met by the per_round=3",
        ),
        (
            {"sites": {"train": NAMES, "per_round": 3}, "selection": {}},
            "s0, s1, s2 is asked in some rounds only; name sites of sites.evaluate",
        ),
    ],
)
def test_what_cannot_be_drawn_is_an_error(
    make_study: MakeStudy, changes: dict[str, object], problem: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        make_study(**changes)


def test_sites_that_score_in_every_round_may_select(make_study: MakeStudy) -> None:
    sites = {"train": NAMES, "per_round": 3, "evaluate": ("unseen",)}
    assert make_study(sites=sites, selection={"sites": ("unseen",)}).selection is not None
