"""The commands on data sets and simulated sites."""

import csv
from collections import Counter
from pathlib import Path

import pytest
import yaml

from client.cli.main import main
from client.config import load_site
from client.data.readers import read
from client.data.splitting import split


def test_split_adds_a_column_in_which_no_lesion_is_torn_apart(labels: Path) -> None:
    out = labels.with_name("new.csv")
    code = main(
        ["split", str(labels), "--out", str(out), "--group", "lesion_id", "--strata", "site", "--test", "0.2"]
    )
    assert code == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["lesion_id"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    # 20 images of each class at each site, a fifth of them for testing
    tested = Counter((row["site"], row["label"]) for row in rows if row["split"] == "test")
    assert tested == dict.fromkeys([(s, c) for s in ("north", "south") for c in ("mel", "nv")], 4)


def test_split_says_what_is_wrong_with_a_table(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", str(labels), "--out", "x.csv", "--label", "dx", "--group", "patient"]) == 1
    told = capsys.readouterr().err
    assert "'dx'" in told
    assert "'patient'" in told


def test_simulate_writes_the_settings_of_every_site_and_they_can_be_read(
    labels: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sites"
    assert main(["simulate", "--data", str(labels.parent), "--out", str(out), "--threads", "1"]) == 0
    assert {path.name for path in out.glob("*.yaml")} == {"north.yaml", "south.yaml", "federation.yaml"}
    about = yaml.safe_load((out / "federation.yaml").read_text())
    assert about == {"synthetic": False, "classes": ["mel", "nv"], "sites": {"north": 40, "south": 40}}
    site = load_site(out / "north.yaml")
    assert (site.name, site.threads) == ("north", 1)
    manifest = split.split(read.read(site.data, ("mel", "nv")), site.split)
    assert len(manifest.rows) == 40


def test_simulate_takes_the_roles_of_a_study(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = {
        "name": "demo", "classes": ["mel", "nv"], "sites": {"train": ["north"], "evaluate": ["south"]}, "rounds": 1,
        "model": {"encoder": "convnext_t", "image_size": 64},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    arguments = ["simulate", "--data", str(labels.parent), "--out", str(tmp_path / "sites")]
    assert main([*arguments, "--study", str(tmp_path / "study.yaml")]) == 0
    north, south = (load_site(tmp_path / "sites" / f"{name}.yaml") for name in ("north", "south"))
    assert (south.split.kind, getattr(south.split, "all", "")) == ("none", "test")
    assert north.split.kind != "none"
    capsys.readouterr()
    # and the check of each knows its role
    told = {}
    for name in ("north", "south"):
        settings = tmp_path / "sites" / f"{name}.yaml"
        main(["check", str(settings), "--study", str(tmp_path / "study.yaml")])
        told[name] = capsys.readouterr().out
    assert (
        "study demo asks this site to train: on 28 images, to choose by 4, and to test the model on 8"
        in told["north"]
    )
    assert "study demo asks this site only to score the model: all 40 images are test images" in told["south"]


def test_simulate_draws_images_that_say_they_are_synthetic_if_there_are_none(tmp_path: Path) -> None:
    out = tmp_path / "sites"
    assert main(["simulate", "--out", str(out), "--images", "12"]) == 0
    about = yaml.safe_load((out / "federation.yaml").read_text())
    assert about["synthetic"] is True
    assert sum(about["sites"].values()) >= 3
    assert len(list(out.rglob("*.jpg"))) == sum(about["sites"].values())


def test_a_folder_without_images_gets_an_error_that_says_what_was_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["simulate", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 1
    assert "Expected labels.csv" in capsys.readouterr().err


def test_settings_for_containers_have_the_paths_and_numbers_of_containers(
    labels: Path, tmp_path: Path
) -> None:
    assert main(["simulate", "--data", str(labels.parent), "--out", str(tmp_path), "--containers", "2"]) == 0
    first, second = (load_site(tmp_path / f"{number}.yaml") for number in (1, 2))
    assert (
        [first.name, second.name]
        == ["north", "south"]
        == list(yaml.safe_load((tmp_path / "federation.yaml").read_text())["sites"])
    )
    assert (first.state_dir, first.socket) == (Path("/state"), Path("/link/trainer.sock"))


def test_containers_for_another_number_of_sites_are_refused_with_the_remedy(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--data", str(labels.parent), "--out", str(tmp_path), "--containers", "3"]) == 1
    assert "consilium-server compose --sites 2" in capsys.readouterr().err


def test_as_many_sites_are_drawn_as_there_are_containers(tmp_path: Path) -> None:
    main(["simulate", "--images", "8", "--out", str(tmp_path), "--containers", "5"])
    names = [load_site(tmp_path / f"{number}.yaml").name for number in range(1, 6)]
    assert names == ["east", "north", "site-4", "site-5", "south"]
