"""The overlap of images in the report: what was proved, what was not, and what was not compared at all."""

from typing import Any

import pytest

from common.config import OverlapConfig, StudyConfig
from server.enrolment.overlap import Overlap, Pair
from server.report.overlap_text import paragraphs


@pytest.fixture
def compared_study(study: StudyConfig) -> StudyConfig:
    return study.model_copy(update={"overlap": OverlapConfig(on_shared="warn")})


def text(study: StudyConfig, found: Overlap | None, **sites: Any) -> str:
    return "\n".join(paragraphs(study, found, **sites))


ALL = {"north": 3, "south": 2, "west": 1, "unseen": 4}


def test_images_that_were_not_compared_are_said_not_to_be_checked(study: StudyConfig) -> None:
    assert text(study, None) == ("It was not checked whether images of unseen are at a training site, too.")
    assert text(study, None, absent={"unseen": "no key"}) == ""


def test_what_is_proved_is_said_only_if_nothing_stands_against_it(compared_study: StudyConfig) -> None:
    clean = text(
        compared_study, Overlap(compared=ALL, not_compared={}, pairs=()), trained=("north", "south", "west")
    )
    assert "10 images of 4 sites were compared: none that unseen scores is at a training site." in clean
    assert "not checked" not in clean
    pair = Pair(one="north", other="unseen", same=1, similar=1)
    leak = text(compared_study, Overlap(compared=ALL, not_compared={}, pairs=(pair,)))
    assert "**unseen shares 1 image with the training site north.**" in leak
    assert "none that unseen scores" not in leak


def test_a_site_that_could_not_be_compared_proves_nothing(compared_study: StudyConfig) -> None:
    found = Overlap(compared={"north": 3, "unseen": 4}, not_compared={"south": "no secret"}, pairs=())
    said = text(compared_study, found)
    assert "**south could not be compared: no secret.**" in said
    assert "none that unseen scores" not in said


def test_a_site_that_trained_before_a_resume_and_is_gone_proves_nothing(compared_study: StudyConfig) -> None:
    found = Overlap(compared={"north": 3, "south": 2, "unseen": 4}, not_compared={}, pairs=())
    said = text(compared_study, found, trained=("north", "south", "west"))
    assert "**west trained the model and was not compared" in said
    assert "none that unseen scores" not in said
    calm = text(compared_study, found, trained=("north", "south"))
    assert "was not compared" not in calm
    assert "none that unseen scores is at a training site" in calm


def test_images_of_one_site_are_of_one_site(compared_study: StudyConfig) -> None:
    assert "3 images of 1 site were compared" in text(
        compared_study, Overlap(compared={"north": 3}, not_compared={}, pairs=())
    )


def test_copies_at_two_training_sites_are_remarked(compared_study: StudyConfig) -> None:
    pair = Pair(one="north", other="south", same=2, similar=3)
    said = text(compared_study, Overlap(compared=ALL, not_compared={}, pairs=(pair,)))
    assert "north and south share 2 images, which count twice." in said
    assert "3 images that look alike from afar, of which 2 are the same" in said
    calm = text(compared_study, Overlap(compared=ALL, not_compared={}, pairs=()))
    assert "count twice" not in calm
    assert "alike" not in calm
