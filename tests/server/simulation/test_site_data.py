"""Runs of other sites are not taken for runs of these."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from client.hosted import HostedTrainer
from common.config import StudyConfig
from common.metrics import count
from common.settings import to_yaml
from server.cli.main import main
from server.config import SimulatedSites
from server.deployment.study_runner import StudyEnd, set_aside
from server.report.write import append_round
from server.simulation import grid, site_data
from server.simulation.engines import Inline
from server.simulation.simulate import load_federation, run_study
from server.state import RoundState
from server.storage import status
from tests.conftest import STUDY

MakeStudy = Callable[..., StudyConfig]
MakeSitesDir = Callable[..., Path]
FEDERATION = SimulatedSites(synthetic=False, classes=("mel", "nv"), sites={"north": 4, "south": 2})
SETTINGS: dict[str, Any] = {
    "name": "north",
    "data": {"kind": "csv", "labels": "labels.csv", "images": "images", "label_map": {"melanoma": "mel"}},
    "split": {"kind": "grouped", "seed": 0},
    "state_dir": "state",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "sites"
    (folder / "images").mkdir(parents=True)
    (folder / "labels.csv").write_text("file,label\na.png,melanoma\n")
    return folder


def digest(folder: Path, federation: SimulatedSites = FEDERATION, **changes: Any) -> str:
    """Of the site north, with some settings replaced."""
    (folder / "north.yaml").write_text(yaml.safe_dump(SETTINGS | changes))
    return site_data.digests(folder, federation, ("north", "south"))["north"]


# --- what counts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"state_dir": "elsewhere"}, {"device": "cuda"}, {"threads": 4}, {"cache": {"memory_mib": 1}}, {"policy": {}}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_where_and_how_a_site_computes_is_not_of_its_data(folder: Path, changes: dict[str, Any]) -> None:
    assert digest(folder, **changes) == digest(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"split": {"kind": "grouped", "seed": 1}},
        {"data": {**SETTINGS["data"], "label_map": {"melanoma": "nv"}}},
        {"data": {**SETTINGS["data"], "images": "other"}},
        {"federation": FEDERATION.model_copy(update={"sites": {"north": 5, "south": 2}})},
        {"federation": FEDERATION.model_copy(update={"synthetic": True})},
    ],
    ids=["split", "label_map", "images", "number of images", "synthetic"],
)
def test_other_data_or_another_split_is_seen(folder: Path, changes: dict[str, Any]) -> None:
    assert digest(folder, **changes) != digest(folder)


def test_another_row_of_a_table_is_seen(folder: Path) -> None:
    before = digest(folder)
    (folder / "labels.csv").write_text("file,label\na.png,naevus\n")
    assert digest(folder) != before


def test_the_same_settings_in_another_folder_are_of_other_images(folder: Path, tmp_path: Path) -> None:
    """`images: images` counts from the folder of the settings."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert digest(folder) != digest(other)


def test_a_site_that_the_study_does_not_name_changes_nothing(folder: Path) -> None:
    more = FEDERATION.model_copy(update={"sites": {**FEDERATION.sites, "west": 9}})
    assert digest(folder, more) == digest(folder)


def test_a_file_that_is_no_settings_has_no_data(folder: Path) -> None:
    (folder / "north.yaml").write_text("{")
    assert site_data.digests(folder, FEDERATION, ("north", "south")).keys() == {"north"}


def test_a_run_says_of_which_sites_it_is(tmp_path: Path) -> None:
    assert site_data.origin(tmp_path, {"north": "a" * 64}) == "not known"
    site_data.keep(tmp_path, {"north": "a" * 64, "south": "b" * 64})
    assert site_data.origin(tmp_path, {"north": "a" * 64, "south": "b" * 64, "west": "c"}) == "these sites"
    assert site_data.origin(tmp_path, {"north": "a" * 64, "south": "c" * 64}) == ("south",)


# --- what becomes of earlier runs -------------------------------------------------------------


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """A folder of three sites, whose images nothing reads."""
    folder = tmp_path / "sites"
    folder.mkdir()
    names = ("north", "south", "west")
    about = {"synthetic": True, "classes": list(STUDY["classes"]), "sites": dict.fromkeys(names, 18)}
    (folder / "federation.yaml").write_bytes(to_yaml(about))
    for name in names:
        (folder / f"{name}.yaml").write_bytes(to_yaml(SETTINGS | {"name": name}))
    return folder


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Names of the studies that were run and whether they were resumed; each run finishes with one score."""
    asked: list[tuple[str, bool]] = []

    def run(
        study: StudyConfig, sites: Path, federation: SimulatedSites, run_dir: Path, *, engine: object,
        resume: bool = False,
    ) -> StudyEnd:  # fmt: skip
        asked.append((study.name, resume))
        set_aside(run_dir)
        run_dir.mkdir(parents=True)
        (run_dir / "study.yaml").write_bytes(to_yaml(study.model_dump(mode="json")))
        site_data.keep(run_dir, site_data.digests(sites, federation, study.sites.all))
        score = count(np.eye(3), np.arange(3), loss_sum=0.0)  # three images, each of them right
        append_round(
            run_dir,
            RoundState(
                round=study.rounds + 1, weights={}, layout={}, preprocessing={}, seconds=1.0, closing=True,
                scores=dict.fromkeys(study.sites.all, score), test_scores=dict.fromkeys(study.sites.all, score),
            ),
            study,
        )  # fmt: skip
        return StudyEnd(True, "")

    monkeypatch.setattr(grid, "run_study", run)
    monkeypatch.setattr(
        "server.simulation.encoders.require", lambda *_: None
    )  # which take seconds to be asked for
    return asked


@pytest.fixture
def order(make_study: MakeStudy, tmp_path: Path) -> Callable[..., int]:
    """`order("matrix", sites)`: the command with its study or grid, and these sites; returns the exit code."""
    settings = make_study(sites={"train": ("north", "south", "west")}).model_dump(mode="json")
    study, several = tmp_path / "study.yaml", tmp_path / "grid.yaml"
    study.write_bytes(to_yaml(settings))
    base = {key: value for key, value in settings.items() if key not in ("name", "seed")}
    variants = {"a": {}, "b": {"rounds": 3}, "c": {"rounds": 4}, "d": {"rounds": 5}}
    several.write_bytes(to_yaml({"name": "paper", "study": base, "variants": variants}))

    def give(command: str, sites: Path) -> int:
        file = several if command == "compare" else study
        return main([command, str(file), "--sites", str(sites), "--runs", str(tmp_path / "runs")])

    return give


def with_another_split(sites: Path) -> Path:
    """The same settings of sites elsewhere, with another split at south."""
    other = sites.with_name("other-sites")
    shutil.copytree(sites, other)
    settings = SETTINGS | {"name": "south", "split": {"kind": "grouped", "seed": 1}}
    (other / "south.yaml").write_bytes(to_yaml(settings))
    return other


@pytest.mark.parametrize(
    ("command", "folder", "first"),
    [
        ("compare", "paper", "a"),
        ("matrix", "tiny-matrix", "local-north"),
        ("leave-one-site-out", "tiny-leave-one-site-out", "federated"),
    ],
)
def test_runs_of_other_sites_are_set_aside_and_run_again(
    command: str, folder: str, first: str, order: Callable[..., int], sites: Path, ran: list[tuple[str, bool]],
    tmp_path: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = with_another_split(sites)
    assert order(command, sites) == 0
    assert len(ran) == 4
    assert order(command, other) == 0
    told = " ".join(capfd.readouterr().err.split())
    assert f"4 earlier runs of other data or another split at south ({first}, " in told
    assert "): set aside, and run again with these sites" in told
    assert "finished before" not in told
    assert ran == 2 * ran[:4]
    assert (tmp_path / "runs" / folder / f"{first}.1" / site_data.FILE).exists()
    assert order(command, other) == 0
    assert "4 finished before" in capfd.readouterr().err
    assert len(ran) == 8


def test_a_run_of_other_sites_that_is_incomplete_is_not_gone_on_with(
    order: Callable[..., int], sites: Path, ran: list[tuple[str, bool]], tmp_path: Path
) -> None:
    order("compare", sites)
    for name in ("a", "b"):
        status.set_status(tmp_path / "runs/paper" / name, status.INCOMPLETE, "no score of west")
    assert order("compare", sites) == 0
    assert ran[4:] == [("a", True), ("b", True)]
    status.set_status(tmp_path / "runs/paper/a", status.INCOMPLETE, "no score of west")
    assert order("compare", with_another_split(sites)) == 0
    assert ran[6:] == [("a", False), ("b", False), ("c", False), ("d", False)]


def test_runs_of_an_earlier_version_are_kept_and_named(
    order: Callable[..., int], sites: Path, ran: list[tuple[str, bool]], tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert order("compare", sites) == 0
    (tmp_path / "runs/paper/b" / site_data.FILE).unlink()
    assert order("compare", sites) == 0
    told = " ".join(capfd.readouterr().err.split())
    assert "4 finished before" in told
    assert (
        "1 earlier run without sites.json, which says of which data a run is (b): kept, and it is not" in told
    )
    assert len(ran) == 4


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_keeps_of_which_sites_it_is_from_its_beginning(
    resume: bool, make_sites_dir: MakeSitesDir, make_study: MakeStudy, tmp_path: Path
) -> None:
    """What goes on stays a run of the sites that it began with."""
    folder, run_dir, study = make_sites_dir(north=6, south=6), tmp_path / "run", make_study(rounds=1)
    federation = load_federation(folder)
    ran = run_study(study, folder, federation, run_dir, engine=Inline(HostedTrainer))
    assert ran.finished
    sites = site_data.digests(folder, federation, study.sites.all)
    assert site_data.origin(run_dir, sites) == "these sites"
    site_data.keep(run_dir, {"north": "a" * 64})
    run_study(study, folder, federation, run_dir, engine=Inline(HostedTrainer), resume=resume)
    assert site_data.origin(run_dir, sites) == (("north",) if resume else "these sites")


# --- sites without settings -------------------------------------------------------------------


@pytest.mark.parametrize("command", ["matrix", "leave-one-site-out"])
def test_a_site_without_settings_is_named_before_the_first_run(
    command: str, order: Callable[..., int], sites: Path, ran: list[tuple[str, bool]],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (sites / "west.yaml").unlink()
    assert order(command, sites) == 1
    told = " ".join(capfd.readouterr().err.split())
    assert f"names west, and {sites} has settings only for north, south; change the study's sites" in told
    assert ran == []
