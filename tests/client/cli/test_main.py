"""`consilium-site` as it is typed."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from client.cli.main import main
from client.config import load_site
from client.data import readers, split

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _keep_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


@pytest.mark.parametrize(
    "command",
    [(), ("trainer",), ("pending",), ("approve",), ("audit",), ("simulate",), ("partition",), ("split",)],
    ids=" ".join,
)
def test_help_is_there_at_once_without_torch(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from client.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "usage:" in done.stdout
    assert done.stderr.strip() == "False"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two sites, two classes, ten lesions of two images in each: 80 images."""
    folder = tmp_path / "data"
    folder.mkdir()
    draws = np.random.default_rng(0)
    lines = ["file,label,lesion_id,site"]
    for site in ("north", "south"):
        for label in ("mel", "nv"):
            for number in range(20):
                name = f"{site}-{label}-{number}.png"
                Image.fromarray(draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / name)
                lines.append(f"{name},{label},{site}-{label}-{number // 2},{site}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


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
    manifest = split.split(readers.read(site.data, ("mel", "nv")), site.split)
    assert len(manifest.rows) == 40


def test_simulate_draws_images_that_say_they_are_synthetic_if_there_are_none(tmp_path: Path) -> None:
    out = tmp_path / "sites"
    assert main(["simulate", "--out", str(out), "--images", "12"]) == 0
    about = yaml.safe_load((out / "federation.yaml").read_text())
    assert about["synthetic"] is True
    assert sum(about["sites"].values()) >= 3
    assert len(list(out.rglob("*.jpg"))) == sum(about["sites"].values())


def test_a_folder_without_images_is_told_what_was_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["simulate", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 1
    assert "Expected labels.csv" in capsys.readouterr().err


def test_a_trainer_without_a_socket_says_where_to_name_one(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sites"
    main(["simulate", "--data", str(labels.parent), "--out", str(out)])
    assert main(["trainer", str(out / "north.yaml")]) == 1
    assert "--socket" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_trainer_listens_until_it_is_told_to_stop_and_leaves_no_socket(
    labels: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out, socket = tmp_path / "sites", tmp_path / "t.sock"
    main(["simulate", "--data", str(labels.parent), "--out", str(out), "--threads", "1"])
    process = subprocess.Popen(
        [sys.executable, "-m", "client.cli", "trainer", str(out / "north.yaml"), "--socket", str(socket)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        until = time.monotonic() + 120
        while "ready" not in (line := process.stderr.readline()):
            assert line
            assert time.monotonic() < until
        assert socket.is_socket()
        process.send_signal(number)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert not socket.exists()


@pytest.mark.slow
def test_a_trainer_ends_when_the_file_it_waits_for_appears(labels: Path, tmp_path: Path) -> None:
    out, over = tmp_path / "sites", tmp_path / "over"
    main(["simulate", "--data", str(labels.parent), "--out", str(out), "--threads", "1"])
    over.touch()
    command = ["trainer", out / "north.yaml", "--socket", tmp_path / "t.sock", "--until", over]
    done = subprocess.run(
        [sys.executable, "-m", "client.cli", *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0
    assert "the federation is over" in done.stderr


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
