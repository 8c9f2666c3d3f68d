"""The sentence in which a site's failure is told to an operator."""

import pytest

from common import wire
from server.rounds.failures import LONGEST_REASON, NOTICED_BY_SERVER, failure_sentence, printable


def failure(case: str, reason: str = "") -> wire.Failure:
    return wire.Failure(
        plan_id="1", site="north", error="data", case=case, advice="look at the images", reason=reason
    )


def test_the_sentence_names_the_case_in_the_sites_log() -> None:
    assert failure_sentence(failure("1a2b")) == "look at the images (data, case 1a2b in its log)"


def test_a_failure_that_the_server_noticed_has_no_case_in_a_sites_log() -> None:
    assert failure_sentence(failure(NOTICED_BY_SERVER)) == "look at the images (data)"


def test_the_reason_stands_behind_the_advice() -> None:
    assert failure_sentence(failure("7", "3 of 9")) == "look at the images: 3 of 9 (data, case 7 in its log)"


@pytest.mark.parametrize(("text", "shown"), [("a\x1b[31mb", "a\\x1b[31mb"), ("a\nb", "a\\nb"), ("ä", "ä")])
def test_what_a_terminal_would_act_on_is_replaced(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_long_reason_is_cut() -> None:
    assert printable("x" * (LONGEST_REASON + 1)) == "x" * LONGEST_REASON
