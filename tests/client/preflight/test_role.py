"""The role of a site in a study: what its split should be, and whether the study knows it at all."""

from pathlib import Path
from typing import Any

import pytest

from client.config import FoldersData, SiteConfig
from client.data.manifest import ImageRow, Manifest
from client.data.references import PictureFile
from client.preflight.findings import Finding
from client.preflight.role import findings
from common.config import StudyConfig


def images(train: int, test: int, unsplit: int = 0) -> Manifest:
    sides = ["train"] * train + ["test"] * test + [None] * unsplit
    rows = [
        ImageRow(PictureFile(Path(f"{n}.png")), "dark", group=None, split=side, source=f"{n}.png")
        for n, side in enumerate(sides)
    ]
    return Manifest(tuple(rows), ("dark", "pale", "red"))


@pytest.fixture
def study(make_study: Any) -> StudyConfig:
    return StudyConfig.model_validate(make_study(sites={"train": ("north",), "evaluate": ("unseen",)}))


def site(name: str, split: dict[str, Any]) -> SiteConfig:
    data = FoldersData(root=Path("/images"))
    return SiteConfig.model_validate({"name": name, "data": data, "split": split, "state_dir": "/state"})


def only(study: StudyConfig, site_: SiteConfig, manifest: Manifest) -> Finding:
    (finding,) = findings(study, site_, manifest)
    return finding


GROUPED = {"kind": "grouped"}
ALL_TEST = {"kind": "none", "all": "test"}
ALL_TRAIN = {"kind": "none", "all": "train"}


def test_a_site_that_only_scores_and_tests_on_all_its_images_is_fine(study: StudyConfig) -> None:
    finding = only(study, site("unseen", ALL_TEST), images(0, 24))
    assert finding.rank == "fine"
    assert finding.what == "study tiny asks this site only to score the model: all 24 images are test images"


@pytest.mark.parametrize(
    "split", [GROUPED, {"kind": "kfold", "fold": 0}, {"kind": "by_image"}, {"kind": "column"}]
)
def test_training_images_of_a_site_that_only_scores_are_counted_as_unused(
    study: StudyConfig, split: dict[str, Any]
) -> None:
    finding = only(study, site("unseen", split), images(19, 5))
    assert finding.rank == "look"
    assert "it tests on 5 images, and 19 on the training side stay unused" in finding.what
    assert "set `split: {kind: none, all: test}`" in finding.what
    assert ("unless patients or lesions" in finding.what) == (split["kind"] == "column")


def test_a_split_that_cannot_be_drawn_is_not_needed_at_a_site_that_only_scores(study: StudyConfig) -> None:
    """24 slices of one patient, and a grouped split of 0.2: the site was missed, and nobody knew why."""
    finding = only(study, site("unseen", GROUPED), images(0, 0, unsplit=24))
    assert finding.rank == "stops"
    assert "takes no split at all: set `split: {kind: none, all: test}`" in finding.what


def test_a_site_that_only_scores_needs_a_test_image(study: StudyConfig) -> None:
    finding = only(study, site("unseen", ALL_TRAIN), images(24, 0))
    assert finding.rank == "stops"
    assert "none of its 24 images is a test image" in finding.what


def test_a_site_that_trains_needs_a_training_image(study: StudyConfig) -> None:
    finding = only(study, site("north", ALL_TEST), images(0, 24))
    assert finding.rank == "stops"
    assert "none of its 24 images is a training image" in finding.what


def test_a_site_that_trains_without_a_test_image_scores_nothing(study: StudyConfig) -> None:
    finding = only(study, site("north", ALL_TRAIN), images(24, 0))
    assert finding.rank == "look"
    assert "It has no test image, so it tests nothing" in finding.what


def test_a_site_that_trains_and_scores_is_fine(study: StudyConfig) -> None:
    finding = only(study, site("north", GROUPED), images(19, 5))
    assert finding.rank == "fine"
    assert (
        finding.what
        == "study tiny asks this site to train: on 19 images, to choose by none, and to test the model on 5"
    )


def test_a_site_that_the_study_does_not_name_is_never_asked(study: StudyConfig) -> None:
    finding = only(study, site("nrth", GROUPED), images(19, 5))
    assert finding.rank == "stops"
    assert (
        "study tiny does not name this site, nrth, so it will not ask it: it names north, unseen"
        in finding.what
    )


@pytest.mark.parametrize("name", ["north", "unseen"])
def test_a_site_without_images_is_left_to_the_finding_that_says_so(study: StudyConfig, name: str) -> None:
    assert list(findings(study, site(name, GROUPED), images(0, 0))) == []
