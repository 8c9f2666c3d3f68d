"""Settings of a simulated federation's sites."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from client.answers.masks import require_roster
from client.config import Columns, ColumnSplit, CsvData, FoldersData, GroupedSplit, NoSplit, load_site
from client.data.simulation.discover import FoundFederation, FoundSite
from client.data.simulation.site_files import write_sites
from client.governance.image_hashes import check, key
from common.errors import SiteDataError


def test_all_simulated_sites_share_a_secret_that_is_kept_and_that_nobody_else_may_read(
    tmp_path: Path, make_study
) -> None:
    sites = tuple(
        FoundSite(name, FoldersData(root=tmp_path / name), GroupedSplit(), num_images=3)
        for name in ("north", "south")
    )
    found = FoundFederation(sites=sites, classes=("mel", "nv"), has_groups=False, num_shared_groups=0)
    checks = set()
    for _ in range(2):
        write_sites(found, tmp_path / "out", synthetic=False)
        secrets = [load_site(tmp_path / "out" / f"{site.name}.yaml").overlap_secret for site in sites]
        checks |= {check(key(secret, make_study())) for secret in secrets}
    assert len(checks) == 1
    assert (tmp_path / "out/overlap.secret").stat().st_mode & 0o777 == 0o600


def test_simulated_sites_have_a_roster_with_the_keys_that_they_keep(tmp_path: Path) -> None:
    sites = tuple(
        FoundSite(name, FoldersData(root=tmp_path / name), GroupedSplit(), num_images=3)
        for name in ("north", "south")
    )
    found = FoundFederation(sites=sites, classes=("mel", "nv"), has_groups=False, num_shared_groups=0)
    rosters = []
    for _ in range(2):
        write_sites(found, tmp_path / "out", synthetic=False)
        rosters += [require_roster(load_site(tmp_path / "out" / f"{site.name}.yaml")) for site in sites]
    assert [*rosters[0].sites] == ["north", "south"]
    assert all(roster == rosters[0] for roster in rosters)


# --- roles in a study ------------------------------------------------------------------------------


@pytest.fixture
def found(tmp_path: Path) -> FoundFederation:
    """north in folders; south and unseen in a table with a split."""
    columns = Columns(split="split")
    return FoundFederation(
        sites=(
            FoundSite("north", FoldersData(root=tmp_path / "north"), GroupedSplit(), num_images=3),
            FoundSite(
                "south", CsvData(labels=tmp_path / "s.csv", columns=columns), ColumnSplit(), num_images=3
            ),
            FoundSite(
                "unseen", CsvData(labels=tmp_path / "u.csv", columns=columns), ColumnSplit(), num_images=3
            ),
        ),
        classes=("mel", "nv"),
        has_groups=True,
        num_shared_groups=0,
    )


def test_a_site_that_only_scores_tests_on_all_its_images(
    found: FoundFederation, tmp_path: Path, make_study
) -> None:
    study = make_study(sites={"train": ("south",), "evaluate": ("north", "unseen")})
    write_sites(found, tmp_path / "out", synthetic=False, study=study)
    north, south, unseen = (
        load_site(tmp_path / "out" / f"{name}.yaml") for name in ("north", "south", "unseen")
    )
    assert north.split == unseen.split == NoSplit(all="test")
    assert isinstance(unseen.data, CsvData)
    assert unseen.data.columns.split is None
    assert south.split == ColumnSplit()


def test_without_a_study_every_site_keeps_its_split(found: FoundFederation, tmp_path: Path) -> None:
    write_sites(found, tmp_path / "out", synthetic=False)
    assert isinstance(load_site(tmp_path / "out" / "north.yaml").split, GroupedSplit)


def test_the_split_of_the_data_stays_if_sites_share_patients(
    found: FoundFederation, tmp_path: Path, make_study
) -> None:
    """All its images would test on patients that another site trains on."""
    study = make_study(sites={"train": ("north", "south"), "evaluate": ("unseen",)})
    write_sites(replace(found, num_shared_groups=2), tmp_path / "out", synthetic=False, study=study)
    assert load_site(tmp_path / "out" / "unseen.yaml").split == ColumnSplit()


def test_a_study_of_other_sites_is_refused(found: FoundFederation, tmp_path: Path, make_study) -> None:
    study = make_study(sites={"train": ("north", "nrth"), "evaluate": ("far",)})
    with pytest.raises(SiteDataError, match="names nrth, far, the images are of north, south, unseen"):
        write_sites(found, tmp_path / "out", synthetic=False, study=study)


def test_sites_that_the_study_does_not_name_are_listed(
    found: FoundFederation, tmp_path: Path, make_study, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    write_sites(found, tmp_path / "out", synthetic=False, study=make_study())
    assert "study tiny does not name unseen" in caplog.text
    assert "does not name north" not in caplog.text
