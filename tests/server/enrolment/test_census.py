"""One table of what the sites hold, and studies that cannot begin."""

import json
from pathlib import Path

import pytest

from common import wire
from common.errors import ConfigError, StorageError
from common.wire import ImageSummary, Sizes
from server.enrolment import census
from server.report import census_table, write
from server.report.markdown import markdown
from server.report.outcome import Outcome

LOOKS = ImageSummary(
    sizes=Sizes(width=(600, 1024), height=(450, 768)), mean=(0.761, 0.5, 0.25), std=(0.1, 0.2, 0.3)
)


def enrolment(
    site: str, train: tuple[int, ...], test: tuple[int, ...], validation: tuple[int, ...] = (0, 0, 0), **more
) -> wire.Enrolment:
    return wire.Enrolment(
        plan_id="e", site=site, layout={}, weights_digest="a", frozen_digest="b", preprocessing={},
        train_counts=train, validation_counts=validation, test_counts=test, device="cpu", weights={}, **more,
    )  # fmt: skip


def sites(*enrolments: wire.Enrolment) -> dict[str, wire.Enrolment]:
    return {enrolment.site: enrolment for enrolment in enrolments}


@pytest.fixture
def held(study) -> census.Census:
    """bkl, mel, nv at north, south and the unseen site; south withholds small classes."""
    same = LOOKS.model_copy(update={"sizes": Sizes(width=(600, 600), height=(450, 450))})
    return census.count(
        study,
        sites(
            enrolment("unseen", (0, 0, 0), (2, 3, 4), images=LOOKS.model_copy(update={"sizes": None})),
            enrolment("south", (0, 20, 30), (0, 5, 0), images=same, withheld=True),
            enrolment("north", (8, 10, 12), (2, 2, 3), (1, 1, 1), images=LOOKS),
        ),
    )


def test_the_table_has_a_row_a_site_a_column_a_class_and_the_sums(study, held):
    head, body, foot = census_table.cells(study, held)
    assert head == ["site", "bkl", "mel", "nv", "all", "pixels", "mean", "deviation"]
    looks = ["0.76 0.50 0.25", "0.10 0.20 0.30"]
    assert body == [
        ["north", "8 / 1 / 2", "10 / 1 / 2", "12 / 1 / 3", "30 / 3 / 7", "600 x 450 to 1024 x 768", *looks],
        ["south~", "- / - / -", "20 / - / 5", "30 / - / -", "50 / - / 5", "600 x 450", *looks],
        ["unseen *", "- / - / 2", "- / - / 3", "- / - / 4", "- / - / 9", "-", *looks],
    ]
    # bkl: 8 train; 2 + 2 test. mel: 10 + 20; 2 + 5 + 3. nv: 12 + 30; 3 + 4. All: 80; 7 + 5 + 9.
    assert foot == [["all", "8 / 1 / 4", "30 / 1 / 10", "42 / 1 / 7", "80 / 3 / 21", "", "", ""]]
    assert census_table.without_validation(study, held) == ["south"]


def test_every_row_of_the_terminals_table_is_of_one_width(study, held):
    title, *lines, notes, without = census_table.table(study, held).splitlines()
    assert (title, notes) == ("what the sites hold", census_table.NOTES)
    assert without == "no validation images: south"
    assert len({line.index("/") for line in lines if "/" in line}) == 1


def test_the_report_has_the_table_and_can_be_written_again(tmp_path, study, held, monkeypatch):
    monkeypatch.setattr("server.report.plots.curves", lambda *_, **__: b"")
    census.save(tmp_path, held)
    assert json.loads((tmp_path / "census.json").read_text())["sites"]["north"]["train_counts"] == [8, 10, 12]
    text = write.write_report(tmp_path, study).read_text()
    assert "| south~ | - / - / - | 20 / - / 5 | 30 / - / - | 50 / - / 5 | 600 x 450 |" in text
    assert "It was not checked whether images of unseen are at a training site, too." in text


def test_a_report_without_a_census_is_as_it_was(study):
    alone = study.model_copy(update={"sites": study.sites.model_copy(update={"evaluate": ()})})
    assert "## The sites' images" not in markdown(Outcome(alone, [], None, synthetic=False))


def test_a_census_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "census.json").write_text("{")
    with pytest.raises(StorageError, match=r"census\.json cannot be read"):
        census.load(tmp_path)


# --- studies that cannot begin -----------------------------------------------------------------


def test_every_class_that_nobody_has_or_nobody_trains_on_is_named(study):
    # bkl: nowhere; mel: only at the site that scores; nv: trained on
    found = census.count(
        study, sites(enrolment("north", (0, 0, 9), (0, 0, 1)), enrolment("unseen", (0, 3, 0), (0, 2, 2)))
    )
    with pytest.raises(ConfigError) as caught:
        census.require_classes(study, found)
    assert "no site has images of bkl: check how the study and the sites spell it" in str(caught.value)
    assert "no training site has training images of mel, so" in str(caught.value)
    assert "name it in untrained_classes" in str(caught.value)
    assert "leaves out" not in str(caught.value)


def test_a_class_that_a_training_site_only_tests_on_is_not_trained(study):
    found = census.count(study, sites(enrolment("north", (1, 0, 9), (0, 3, 1))))
    with pytest.raises(ConfigError, match="no training site has training images of mel"):
        census.require_classes(study, found)


def test_a_study_can_begin_without_the_classes_that_it_names_and_no_others(study):
    found = census.count(
        study, sites(enrolment("north", (0, 0, 9), (0, 0, 1)), enrolment("unseen", (0, 0, 0), (0, 1, 1)))
    )
    census.require_classes(study.model_copy(update={"untrained_classes": ("bkl", "mel")}), found)
    with pytest.raises(ConfigError, match="no site has images of bkl") as caught:
        census.require_classes(study.model_copy(update={"untrained_classes": ("mel",)}), found)
    assert "mel" not in str(caught.value)


def test_a_site_that_withholds_is_named_beside_the_class_that_lacks(study):
    found = census.count(study, sites(enrolment("south", (4, 0, 9), (0, 0, 1), withheld=True)))
    with pytest.raises(ConfigError, match="south may have a few that the policy there leaves out"):
        census.require_classes(study, found)


def test_a_study_whose_classes_are_all_trained_on_begins(study, held):
    census.require_classes(study, held)
