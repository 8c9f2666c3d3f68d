"""The studies that one study is compared with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.hosted import HostedTrainer
from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import to_yaml
from common.weights import digest, load_file
from consilium_fl import simulation
from server.cli.main import main
from server.simulation import grid, matrix
from server.simulation.engines import Inline
from server.storage.status import read_status
from tests.server.simulation import trainers_of_tests
from tests.server.simulation.trainers_of_tests import Deadly, Held

MakeStudy = Callable[..., StudyConfig]
MakeSitesDir = Callable[..., Path]
THREE = {"train": ("east", "north", "south"), "evaluate": ("west",)}


def test_each_sites_own_model_the_federated_and_the_pooled_share_all_settings(make_study: MakeStudy) -> None:
    study = make_study(
        sites=THREE, algorithm={"kind": "fedprox"}, selection={"metric": "loss", "sites": ["north"]}
    )
    found = matrix.models(study, pooled=True)
    assert list(found) == ["local-east", "local-north", "local-south", "federated", "pooled"]
    assert found["federated"] == study.model_copy(update={"name": "federated"})
    assert found["local-north"].sites.train == ("north",)
    assert found["local-north"].sites.evaluate == ("east", "south", "west")
    assert found["local-north"].algorithm.kind == "fedavg"
    assert found["local-north"].selection is not None
    assert found["local-north"].selection.sites == ("north",)
    assert found["local-east"].selection is not None
    assert found["local-east"].selection.sites is None
    assert found["pooled"].sites.evaluate == study.sites.all
    assert {one.local for one in found.values()} == {study.local}


def test_each_training_site_is_left_out_once_and_scores(make_study: MakeStudy) -> None:
    found = matrix.left_out(make_study(sites=THREE))
    assert list(found) == ["federated", "without-east", "without-north", "without-south"]
    assert found["without-north"].sites.train == ("east", "south")
    assert found["without-north"].sites.evaluate == ("north", "west")


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ({"train": ("north", "south")}, "leaving one out takes 3 or more"),
        ({**THREE, "required": 2}, "sites.required or sites.per_round"),
    ],
)
def test_a_site_cannot_be_left_out_of_too_few(
    make_study: MakeStudy, sites: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        matrix.left_out(make_study(sites=sites))


def test_a_matrix_runs_and_goes_on_where_it_stopped(
    make_sites_dir: MakeSitesDir, make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    folder = make_sites_dir(north=10, south=10)
    study = make_study(rounds=1)
    table = simulation.matrix(study, folder, runs=tmp_path / "runs", engine="inline")
    assert not table.failures
    assert not table.lacking
    text = table.path.read_text()
    for model in ("local-north", "local-south", "federated"):
        assert f"| {model} |" in text
    assert "| *test images* | 6 | 6 | 12 |" in text
    # 3 classes: 10 numbers a patient, so sums are of 20 patients or more
    assert "Why images are taken as independent:" in text
    assert (
        "- north tested 6 images, and sums leave a site from 20 test patients on, with 3 classes (models: local-north, "
        "local-south and federated)." in text
    )
    monkeypatch.setattr("server.simulation.grid.run_study", lambda *_, **__: pytest.fail("it was run again"))
    assert simulation.matrix(study, folder, runs=tmp_path / "runs", engine="inline") == table
    with pytest.raises(ConfigError, match="leave start_from out and set rounds to 1 or more"):
        simulation.matrix(make_study(rounds=0, local={}), folder, runs=tmp_path / "runs", engine="inline")


# --- models side by side ---------------------------------------------------------------------


def test_models_side_by_side_give_the_table_of_one_after_the_other(
    make_sites_dir: MakeSitesDir, make_study: MakeStudy, tmp_path: Path
) -> None:
    study, sites = make_study(rounds=1), make_sites_dir(north=6, south=5)
    one = matrix.run_matrix(study, sites, tmp_path / "one", Inline(HostedTrainer))
    side = matrix.run_matrix(study, sites, tmp_path / "side", Inline(HostedTrainer), jobs=3)
    assert not one.failures
    assert not side.failures
    assert (side.path.parent / "federated.log").exists()  # a process of its own
    assert not (one.path.parent / "federated.log").exists()
    for name in ("matrix.md", "matrix.csv"):
        assert (one.path.parent / name).read_text() == (side.path.parent / name).read_text()
    assert weights_of(one.path.parent) == weights_of(side.path.parent)


def test_a_model_whose_process_dies_is_a_failure_with_its_reason_and_the_others_have_figures(
    make_sites_dir: MakeSitesDir, make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(rounds=1, sites={"train": ("dies",), "evaluate": ("south",)})
    table = matrix.run_matrix(
        study, make_sites_dir(dies=5, south=5), tmp_path / "runs", Inline(Deadly), jobs=2
    )
    log = tmp_path / "runs/tiny-matrix/local-dies.log"
    assert table.failures == {"local-dies": f"its process ended with exit code 3; {log} tells why"}
    assert "local-dies has no figures: its process ended" in table.path.read_text().replace("\\", "")


def test_ctrl_c_stops_the_models_and_the_same_command_goes_on_with_them(
    make_sites_dir: MakeSitesDir,
    make_study: MakeStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    press_ctrl_c: Callable[[Callable[[], bool]], list[int]],
) -> None:
    study = make_study(sites={"train": ("north",), "evaluate": ("south",)})
    sites, held = make_sites_dir(north=5, south=5), tmp_path / "held"
    held.mkdir()
    monkeypatch.setenv(trainers_of_tests.FOLDER, str(held))
    press_ctrl_c(lambda: (held / "federated").exists() and (held / "local-north").exists())
    with pytest.raises(KeyboardInterrupt):
        matrix.run_matrix(study, sites, tmp_path / "runs", Inline(Held), jobs=2)
    (held / "go").touch()
    table = matrix.run_matrix(study, sites, tmp_path / "runs", Inline(Held), jobs=2)
    assert not table.failures
    over = [read_status(table.path.parent / model) for model in matrix.models(study, pooled=False)]
    assert [now.resumed_after for now in over if now] == [(1,), (1,)]
    whole = matrix.run_matrix(study, sites, tmp_path / "whole", Inline(HostedTrainer))
    assert whole.path.read_text() == table.path.read_text()
    assert weights_of(whole.path.parent) == weights_of(table.path.parent)


@pytest.mark.parametrize("command", ["matrix", "leave-one-site-out"])
def test_the_commands_hand_the_number_of_jobs_on(
    command: str,
    make_sites_dir: MakeSitesDir,
    make_study: MakeStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sites, asked = make_sites_dir(east=4, north=4, south=4), list[int]()

    def run(*_: object, jobs: int, **__: object) -> tuple[Path, tuple[()]]:
        asked.append(jobs)
        (tmp_path / "table").mkdir(exist_ok=True)
        return tmp_path / "table", ()

    monkeypatch.setattr(grid, "run", run)
    study = tmp_path / "study.yaml"
    settings = make_study(sites={"train": ("east", "north", "south")}).model_dump(mode="json")
    study.write_bytes(to_yaml(settings))
    for number in ([], ["--jobs", "3"]):
        assert main([command, str(study), "--sites", str(sites), "--engine", "inline", *number]) == 0
    assert asked == [1, 3]


def weights_of(folder: Path) -> dict[str, str]:
    """Digests of the weights by model."""
    return {
        path.parent.name: digest(load_file(path)[0]) for path in sorted(folder.glob("*/weights.safetensors"))
    }
