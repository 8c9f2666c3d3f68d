"""Refusals in a row, what a site is told of them, and when it is asked no more."""

import numpy as np
import pytest

from server.rounds.participation import counted, notice, readmitted, set_aside, summary
from server.state import RefusalStreak, RoundState, SiteRound

TWICE = RefusalStreak(2, 4, "its norm is 9")


def rows(**outcomes):
    return [SiteRound(site, outcome, "its norm is 7") for site, outcome in outcomes.items()]


@pytest.mark.parametrize(
    ("outcome", "after"),
    [
        ("ok", {}),
        ("refused", {"north": RefusalStreak(3, 5, "its norm is 7")}),
        ("failed", {"north": TWICE}),
        ("missing", {"north": TWICE}),
        ("set_aside", {"north": TWICE}),
    ],
)
def test_refusals_count_in_a_row_and_only_an_admitted_answer_clears_them(outcome, after):
    assert counted({"north": TWICE}, 5, rows(north=outcome)) == after


def test_every_site_has_a_count_of_its_own():
    after = counted({"a": TWICE, "b": TWICE}, 5, rows(c="refused", a="refused", b="ok", d="ok"))
    assert [(site, refused.in_a_row) for site, refused in after.items()] == [("a", 3), ("c", 1)]


def test_a_site_that_was_not_asked_keeps_its_count():
    assert counted({"north": TWICE}, 5, rows(south="ok")) == {"north": TWICE}


@pytest.mark.parametrize(("limit", "aside"), [(None, set()), (4, set()), (3, {"b"}), (2, {"a", "b"})])
def test_a_site_refused_as_often_as_the_limit_says_is_set_aside(limit, aside):
    assert set_aside({"a": TWICE, "b": RefusalStreak(3, 4, "")}, limit) == aside


def test_the_operator_can_give_a_site_a_clean_slate():
    state = RoundState(4, {"w": np.zeros(1)}, {}, {}, refusals={"a": TWICE, "b": TWICE})
    assert readmitted(state, ["a", "c"]).refusals == {"b": TWICE}


def test_a_refused_site_reads_how_often_when_and_why():
    assert summary(TWICE) == "refused 2 time(s) in a row, last in round 4: its norm is 9"
    assert notice(TWICE, None) == summary(TWICE)
    assert notice(TWICE, 3) == f"at 3 in a row this site is set aside; {summary(TWICE)}"
    assert notice(None, 3) is None


def test_a_notice_is_never_longer_than_a_plan_takes():
    assert len(notice(RefusalStreak(1, 4, "x" * 9999), 3)) == 2000
