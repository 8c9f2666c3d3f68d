"""What went wrong: each row and sentence stands where it is true, and "nothing" only where nothing else does."""

from dataclasses import replace
from typing import Any

import pytest

from server.enrolment.overlap import Overlap
from server.heads.record import HeadTable
from server.report.outcome import Ending
from server.report.troubles import troubles
from server.state import RoundState, SiteRound
from tests.server.report.conftest import Change, MakeOutcome, without

NOTHING = "Nothing: every site answered every round that it was asked in, and no update was refused."


def test_a_study_in_which_all_went_well_says_so(make_outcome: MakeOutcome) -> None:
    assert NOTHING in troubles(make_outcome(ending=Ending("finished", "3 rounds")))


def test_a_study_that_goes_on_says_only_that_all_went_well_so_far(make_outcome: MakeOutcome) -> None:
    text = troubles(make_outcome(last=2))
    assert "Nothing so far: every site answered" in text


def test_a_study_without_rounds_does_not_say_that_nothing_went_wrong(make_outcome: MakeOutcome) -> None:
    text = troubles(make_outcome(last=0))
    assert "No round is on record." in text
    assert "Nothing" not in text


def test_a_site_that_never_enrolled_is_named_once_with_its_reason(make_outcome: MakeOutcome) -> None:
    text = troubles(make_outcome(without("unseen", "absent", "data: no split is possible", range(9))))
    assert "| 1 to closing | unseen | absent | data: no split is possible |" in text
    assert text.count("no split is possible") == 1
    assert "Nothing" not in text
    assert "*absent*: the study names the site, but it did not enrol, so it was not asked." in text


def test_a_site_that_enrolled_after_a_resume_is_absent_only_before(make_outcome: MakeOutcome) -> None:
    text = troubles(make_outcome(without("west", "absent", "it did not connect within 300 s", [1, 2])))
    assert "| 1 to 2 | west | absent | it did not connect within 300 s |" in text


def test_a_site_that_failed_before_round_1_of_a_failed_study_is_named(make_outcome: MakeOutcome) -> None:
    text = troubles(make_outcome(last=0, absent={"west": "no key"}))
    assert "| - | west | absent | no key |" in text
    assert "No round is on record" not in text


def test_a_site_of_which_an_older_version_kept_nothing_is_named_all_the_same(
    make_outcome: MakeOutcome,
) -> None:
    def forget(state: RoundState) -> RoundState:
        return replace(state, sites=tuple(row for row in state.sites if row.site != "unseen"))

    assert "| all | unseen | absent | the reason is not on record |" in troubles(make_outcome(forget))


@pytest.mark.parametrize(
    ("outcome", "meaning"),
    [
        ("refused", "*refused*: the answer did not pass"),
        ("failed", "*failed*: the site answered that it could not, or could not be reached."),
        ("missing", "*missing*: no answer came while the server waited."),
        ("set_aside", "*set_aside*: refused too often in a row, so it was not asked."),
    ],
)
def test_an_outcome_is_explained_if_it_is_in_the_table(
    make_outcome: MakeOutcome, outcome: str, meaning: str
) -> None:
    text = troubles(make_outcome(without("south", outcome, "a reason", [2])))
    assert "| 2 | south | " + outcome + " | a reason |" in text
    assert meaning in text
    assert text.count("*: ") == 1  # and no other
    assert "Nothing" not in text


def test_an_answer_that_counted_is_listed_if_a_second_one_was_refused(make_outcome: MakeOutcome) -> None:
    def twice(state: RoundState) -> RoundState:
        again = "a second answer was refused, the first one counts"
        rows = (replace(row, reason=again if row.site == "south" else "") for row in state.sites)
        return replace(state, sites=tuple(rows)) if state.round == 2 else state

    text = troubles(make_outcome(twice))
    assert "| 2 | south | ok | a second answer was refused, the first one counts |" in text
    assert "no update was refused" not in text


def attempts(state: RoundState) -> RoundState:
    return replace(state, attempts=2) if state.round in (2, 4) else state


def test_rounds_that_were_repeated_are_named(make_outcome: MakeOutcome) -> None:
    text = troubles(make_outcome(attempts))
    assert "- Round 2 had enough answers only in attempt 2." in text
    assert "- The closing evaluation had enough answers only in attempt 2." in text
    assert "Round 1 had" not in text
    assert "Nothing" not in text


def test_a_study_that_was_resumed_says_after_which_rounds(make_outcome: MakeOutcome) -> None:
    text = troubles(make_outcome(resumed_after=(1, 2)))
    assert "The study was resumed from the checkpoint after round 1 and round 2." in text
    assert "Nothing" not in text
    assert "checkpoint" not in troubles(make_outcome())


def test_a_study_that_was_resumed_twice_at_one_round_names_it_once(make_outcome: MakeOutcome) -> None:
    text = troubles(make_outcome(resumed_after=(1, 2, 2)))
    assert "resumed from the checkpoint after round 1 and round 2 (2 times)." in text


def test_updates_that_were_shrunk_are_counted_by_site(make_outcome: MakeOutcome) -> None:
    # every update of the generated study has the norm 0.25
    text = troubles(make_outcome(settings={"aggregation": {"kind": "mean", "norm_clip": 0.2}}))
    assert (
        "- Updates longer than 0.2 were shrunk to it: those of north in 3 rounds, south in 3 rounds and"
        in text
    )
    assert NOTHING in troubles(make_outcome(settings={"aggregation": {"kind": "mean", "norm_clip": 0.3}}))


def test_images_that_could_not_be_compared_went_wrong(make_outcome: MakeOutcome) -> None:
    found = Overlap(compared={"north": 3}, not_compared={"unseen": "no secret"}, pairs=())
    settings = {"overlap": {"on_shared": "warn"}}
    text = troubles(make_outcome(settings=settings, overlap=found))
    assert "- unseen could not be compared: no secret." in text
    assert "Nothing" not in text
    clean = Overlap(compared={"north": 3, "unseen": 2}, not_compared={}, pairs=())
    assert NOTHING in troubles(make_outcome(settings=settings, overlap=clean))


@pytest.mark.parametrize(
    "lost", [{"problems": {"south": "score: late"}}, {"lacking": {"federated.lda": "few"}}]
)
def test_heads_that_are_missing_went_wrong(make_outcome: MakeOutcome, lost: dict[str, Any]) -> None:
    text = troubles(make_outcome(heads=HeadTable(3, **lost)))
    assert "the section on heads says which" in text
    assert "Nothing" not in text
    assert NOTHING in troubles(make_outcome(heads=HeadTable(3)))


def test_a_study_that_failed_is_not_without_trouble(make_outcome: MakeOutcome) -> None:
    text = troubles(make_outcome(last=2, ending=Ending("failed", "the disk is full")))
    assert "- The study did not finish: the disk is full" in text
    assert "Nothing" not in text


def test_a_site_is_named_for_every_stretch_of_rounds_without_it(make_outcome: MakeOutcome) -> None:
    text = troubles(make_outcome(without("west", "absent", "no key", [1, 3])))
    assert "| 1 | west | absent | no key |" in text
    assert "| 3 | west | absent | no key |" in text


def test_two_reasons_of_one_site_are_two_rows(make_outcome: MakeOutcome) -> None:
    changes: list[Change] = [without("west", "absent", reason, [n]) for n, reason in ((1, "a"), (2, "b"))]
    text = troubles(make_outcome(*changes))
    assert "| 1 | west | absent | a |" in text
    assert "| 2 | west | absent | b |" in text


def test_a_row_keeps_its_kind_when_it_is_read_again(make_outcome: MakeOutcome) -> None:
    outcome = make_outcome(without("unseen", "absent", "no key", range(9)))
    assert [row for record in outcome.rounds for row in record.sites if row.outcome == "absent"] == [
        SiteRound("unseen", "absent", "no key")
    ] * 4
