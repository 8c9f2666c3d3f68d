"""Which sites share images, judged from their hashes alone."""

import pytest

from common.config import OverlapConfig
from common.errors import StorageError
from server.enrolment import overlap
from server.enrolment.overlap import Hashes, Pair
from server.report import overlap_text

COMPARING = {"overlap": OverlapConfig()}


def hashes(same: str, similar: str | None = None, check: str = "c") -> Hashes:
    """A letter stands for one hash."""
    return Hashes(check, frozenset(same), frozenset(same.upper() if similar is None else similar))


def judged(study, sent, num_images=None, refused=None) -> overlap.Overlap:
    counts = {site: len(found.same) for site, found in sent.items()} | (num_images or {})
    return overlap.compared(study, sent, counts, refused or {})


@pytest.fixture
def comparing(study):
    """north, south and west train, `unseen` scores."""
    return study.model_copy(update=COMPARING)


def test_pairs_that_share_hashes_are_counted_and_no_others(comparing):
    found = judged(
        comparing,
        {"unseen": hashes("axyz"), "north": hashes("abc"), "south": hashes("bcde"), "west": hashes("q")},
    )
    assert found.pairs == (
        Pair(one="north", other="south", same=2, similar=2),
        Pair(one="north", other="unseen", same=1, similar=1),
    )
    assert found.compared == {"north": 3, "south": 4, "west": 1, "unseen": 4}
    assert overlap.problems(comparing, found) == ["unseen shares 1 image with the training site north"]
    assert overlap.remarks(comparing, found) == ["north and south share 2 images, which count twice"]


def test_pictures_that_only_look_alike_are_a_remark(comparing):
    found = judged(comparing, {"north": hashes("ab", "AB"), "unseen": hashes("cd", "AD")})
    assert overlap.problems(comparing, found) == []
    (remark,) = overlap.remarks(comparing, found)
    assert remark.startswith(
        "north and unseen have 1 image that look alike from afar, of which 0 are the same"
    )


def test_a_site_with_another_secret_is_named_and_not_called_free_of_overlap(comparing):
    sent = {"north": hashes("ab"), "south": hashes("cd"), "unseen": hashes("ab", check="other")}
    found = judged(comparing, sent)
    assert found.not_compared == {"unseen": "its overlap_secret is not that of north, south"}
    assert overlap.problems(comparing, found) == [
        "unseen could not be compared: its overlap_secret is not that of north, south"
    ]


def test_where_two_secrets_stand_against_each_other_nobody_is_called_right(comparing):
    found = judged(comparing, {"north": hashes("ab"), "unseen": hashes("ab", check="other")})
    assert found.not_compared == dict.fromkeys(["north", "unseen"], "the sites' overlap_secrets differ")
    assert found.pairs == ()


@pytest.mark.parametrize("sent", [hashes("abc"), hashes("ab", "ABC"), hashes("")])
def test_as_many_hashes_as_enrolled_images_or_none_count(comparing, sent):
    found = judged(comparing, {"north": hashes("xy"), "unseen": sent}, {"unseen": 2})
    assert "hashes of 2 images" in found.not_compared["unseen"]


def test_a_site_that_refuses_proves_nothing(comparing):
    found = judged(comparing, {"unseen": hashes("a")}, refused={"north": "policy: overlap"})
    assert overlap.problems(comparing, found) == ["north could not be compared: policy: overlap"]


def test_an_unseen_site_gets_its_own_hashes_that_training_sites_have(comparing):
    sent = {
        "north": hashes("ab", "AQ"),
        "south": hashes("cd", "ZD"),
        "unseen": hashes("axcy", "WXZY"),
    }
    assert overlap.shared_with_training(comparing, sent, "unseen") == ("Z", "a", "c")


def test_the_outcome_is_on_record(comparing, tmp_path):
    assert overlap.load(tmp_path) is None
    found = judged(comparing, {"north": hashes("a"), "unseen": hashes("a")})
    overlap.save(tmp_path, found)
    assert overlap.load(tmp_path) == found
    (tmp_path / overlap.FILE).write_text("[]")
    with pytest.raises(StorageError, match=r"overlap\.json cannot be read"):
        overlap.load(tmp_path)


def test_the_report_says_what_was_proved_and_what_was_not(comparing):
    none = judged(comparing, {"north": hashes("a"), "unseen": hashes("b")})
    proved = "2 images of 2 sites were compared: none that unseen scores is at a training site."
    assert proved in overlap_text.paragraphs(comparing, none)
    some = judged(comparing, {"north": hashes("a"), "unseen": hashes("a")})
    told = overlap_text.paragraphs(comparing, some)
    assert "**unseen shares 1 image with the training site north.**" in told
    assert not [line for line in told if "none that unseen scores" in line]
