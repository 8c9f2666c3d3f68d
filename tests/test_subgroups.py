"""A study's test by subgroup: from the columns of two sites' tables to the report."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.answers import subgroups
from client.config import CsvData, PolicyConfig, SiteConfig, SubgroupColumn
from client.data.manifest import ImageRow
from client.data.readers.read import survey
from client.data.references import PictureFile
from common.config import Bands, StudyConfig
from server.report.markdown import markdown
from server.report.outcome import Outcome
from server.storage import history
from tests.test_three_sides import conducted, hospital

MakeStudy = Callable[..., StudyConfig]
SEXES = {"sex": ("female", "male")}
BY_AGE = {"age": {"bands": (0, 40, 60, 120)}}
AT_THREE = {"min_subgroup": 3, "subgroups": True}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


def with_sexes(site: SiteConfig, sexes: str, **policy: Any) -> SiteConfig:
    """The site with a column of sexes, in turn over the images, and rules of its policy."""
    assert isinstance(site.data, CsvData)
    labels = site.data.labels
    with labels.open(newline="") as file:
        head, *rows = csv.reader(file)
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*head, "Gender"])
        writer.writerows([*row, sexes[place % len(sexes)]] for place, row in enumerate(rows))
    column = SubgroupColumn(column="Gender", values={"f": "female", "m": "male"})
    rules = PolicyConfig(**(site.policy.model_dump() | policy))
    data = site.data.model_copy(update={"subgroups": {"sex": column}})
    return site.model_copy(update={"data": data, "policy": rules})


def study_of(make_study: MakeStudy, **settings: Any) -> StudyConfig:
    return make_study(rounds=1, **{"subgroups": SEXES, **settings})


def test_the_test_is_counted_by_subgroup_over_the_sites_that_can(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """North has three test images of each class, all of women; south does not know."""
    sites = {name: hospital(tmp_path / name, name, None) for name in ("north", "south")}
    sites["north"] = with_sexes(sites["north"], "f", **AT_THREE)
    study = study_of(make_study)
    rounds = history.read_rounds(conducted(tmp_path, study, sites))
    assert [sorted(record.subgroups) for record in rounds] == [[], ["sex"]]
    by_sex = rounds[-1].subgroups["sex"]
    assert by_sex.sites == ("north",)
    assert rounds[-1].test is not None
    assert by_sex.confusion_VCC[0] == rounds[-1].test.sites["north"].confusion_CC
    assert np.sum(by_sex.confusion_VCC[1]) == 0
    text = markdown(Outcome(study, rounds, None, synthetic=True))
    assert "### By sex" in text
    assert "| female | 9 | 3 of 3 |" in text
    assert "| male | - | - | - | - |" in text
    assert "0 of 9 images are in no row" in text
    assert "Sites that do not count by it: south." in text


@pytest.mark.parametrize(
    "policy", [{"subgroups": False}, {"min_subgroup": 4}], ids=["a rule forbids it", "rows are too small"]
)
def test_the_sites_policy_keeps_counts_back(
    make_study: MakeStudy, tmp_path: Path, policy: dict[str, Any]
) -> None:
    sites = {name: hospital(tmp_path / name, name, None) for name in ("north", "south")}
    sites["north"] = with_sexes(sites["north"], "f", **{**AT_THREE, **policy})
    rounds = history.read_rounds(conducted(tmp_path, study_of(make_study), sites))
    text = markdown(Outcome(study_of(make_study), rounds, None, synthetic=True))
    if "subgroups" in policy:
        assert not rounds[-1].subgroups
        assert "None: no site counts by them" in text
    else:
        assert np.sum(rounds[-1].subgroups["sex"].confusion_VCC) == 0
        assert "9 of 9 images are in no row" in text


def test_a_study_that_selects_has_them_too_and_no_weight_changes(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    sites = {
        name: with_sexes(hospital(tmp_path / name, name, None), "f", **AT_THREE)
        for name in ("north", "south")
    }
    chosen = {"selection": {"metric": "loss"}}
    with_them = history.read_rounds(conducted(tmp_path, study_of(make_study, **chosen), sites))
    again = {
        name: with_sexes(hospital(tmp_path / "b" / name, name, None), "f") for name in ("north", "south")
    }
    without = history.read_rounds(
        conducted(tmp_path / "b", study_of(make_study, subgroups=None, **chosen), again)
    )
    assert with_them[-1].subgroups["sex"].sites == ("north", "south")
    assert with_them[-1].test == without[-1].test
    assert with_them[-1].validation == without[-1].validation


def row(**attributes: str) -> ImageRow:
    return ImageRow(PictureFile(Path("/x.png")), "a", None, "test", "row", attributes=attributes)


@pytest.mark.parametrize(
    ("cell", "place"),
    [
        ("0", 0), ("39.9", 0), ("40", 1), ("59,5", 1), ("60", 2), ("119", 2), ("120", -1), ("-1", -1), ("", -1),
        ("unknown", -1), ("nan", -1), ("inf", -1), ("045Y", 1), ("006M", 0), ("600M", 1), ("1e400", -1),
    ],
)  # fmt: skip
def test_a_number_is_in_the_band_that_begins_at_or_below_it(cell: str, place: int) -> None:
    bands = Bands(bands=(0, 40, 60, 120))
    assert subgroups.places([row(age=cell)], "age", bands, SubgroupColumn(column="age")).tolist() == [place]


@pytest.mark.parametrize(
    ("cell", "place"),
    [
        ("lower extremity", 1),
        ("Lower_Extremity", 1),
        ("BACK", 0),
        ("rug", 0),
        ("acral", -1),
        ("", -1),
        ("hidden", -1),
    ],
)
def test_a_value_is_found_in_other_letters_and_under_the_sites_own_name(cell: str, place: int) -> None:
    column = SubgroupColumn(column="site", values={"rug": "back", "hidden": None})
    found = subgroups.places([row(body_site=cell)], "body_site", ("back", "lower-extremity"), column)
    assert found.tolist() == [place]


@pytest.mark.parametrize(
    ("finest", "taken"),
    [(None, True), ((0, 40, 60, 120), True), ((0, 20, 40, 60, 80, 120), True), ((0, 41, 60, 120), False)],
)
def test_a_study_may_join_the_sites_bands_and_not_divide_them(
    make_study: MakeStudy, tmp_path: Path, finest: tuple[int, ...] | None, taken: bool
) -> None:
    site = hospital(tmp_path / "north", "north", None)
    assert isinstance(site.data, CsvData)
    column = SubgroupColumn(column="split", bands=finest)
    site = site.model_copy(update={"data": site.data.model_copy(update={"subgroups": {"age": column}})})
    assert bool(subgroups.asked(study_of(make_study, subgroups=BY_AGE), site)) is taken


def test_a_table_carries_its_attributes_into_the_manifest(tmp_path: Path) -> None:
    site = with_sexes(hospital(tmp_path / "north", "north", None), "fmx")
    rows = survey(site.data, ("dark", "pale", "red")).manifest.rows
    assert [one.attributes for one in rows[:3]] == [{"sex": "f"}, {"sex": "m"}, {"sex": "x"}]
    assert subgroups.places(rows[:3], "sex", SEXES["sex"], subgroups.sources_of(site)["sex"]).tolist() == [
        0,
        1,
        -1,
    ]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"subgroups": {"sex": ("female", "Female")}}, "sex has a value twice"),
        ({"subgroups": {"age": {"bands": (0, 60, 40)}}}, "expected edges that rise"),
        ({"subgroups": {"age": {"bands": (40,)}}}, "at least 2"),
        ({"subgroups": {}}, "at least 1"),
        ({"subgroups": SEXES, "curves_on": "test"}, "are of one test at the end"),
        ({"subgroups": SEXES, "privacy": {"noise": 1, "sampling_rate": 0.1}}, "do not go with privacy"),
    ],
)
def test_a_study_with_wrong_subgroups_is_a_sentence(
    make_study: MakeStudy, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        make_study(**settings)
