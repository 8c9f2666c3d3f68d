"""Since when a site lacks, round by round."""

from datetime import UTC, datetime

from server.rounds.participation import absences, lacking
from server.state import Absence, SiteRound

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def test_the_first_round_without_an_answer_is_remembered_until_one_counts():
    first = absences({}, 4, [SiteRound("south", "missing"), SiteRound("north", "ok")], NOON)
    assert first == {"south": Absence(4, "2026-03-01 12:00 UTC")}
    assert absences(first, 5, [SiteRound("south", "failed")], NOON.replace(hour=13)) == first
    assert absences(first, 5, [SiteRound("south", "ok")], NOON) == {}


def test_a_site_that_was_not_asked_is_as_away_as_it_was():
    before = {"unseen": Absence(1, "2026-03-01 11:00 UTC")}
    assert absences(before, 2, [SiteRound("north", "ok")], NOON) == before


def test_who_lacks_is_named_with_time_and_reason():
    absent = {"south": Absence(4, "2026-03-01 12:00 UTC")}
    rows = [SiteRound("north", "ok"), SiteRound("south", "missing", "no answer within 9 s")]
    assert lacking(rows, absent) == "south since round 4 (2026-03-01 12:00 UTC): no answer within 9 s"
