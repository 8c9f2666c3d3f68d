"""Simulations from Python: what is passed on, what comes back, and a real one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.cli.main import main as site_main
from common.config import StudyConfig
from common.errors import ConfigError
from common.weights import digest, load_file
from consilium_fl import Run, compare, read_study, resume, simulate
from server.simulation import grid as experiments
from server.simulation import simulate as simulation
from server.simulation.engines import Processes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    folder = tmp_path / "sites"
    folder.mkdir()
    about = {"synthetic": True, "classes": ["dark", "pale", "red"], "sites": {"north": 24, "south": 12}}
    (folder / "federation.yaml").write_text(yaml.safe_dump(about))
    return folder


@pytest.fixture
def launched(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each launch of a federation was asked for; each leaves the finished run of `run_dir`."""
    asked: list[dict[str, Any]] = []

    def run_study(study: StudyConfig, _sites: Path, _federation: object, folder: Path, **more: Any) -> Any:
        asked.append({"study": study, "run_dir": folder, **more})
        if folder != run_dir:
            shutil.copytree(run_dir, folder)
        return simulation.StudyEnd(True, "1 rounds")

    for module in (simulation, experiments):
        monkeypatch.setattr(module, "run_study", run_study)
    return asked


def test_a_study_is_run_from_its_file_or_its_settings(
    run_dir: Path, sites: Path, tmp_path: Path, launched: list[dict[str, Any]]
) -> None:
    study = read_study(run_dir / "study.yaml")
    renamed = study.model_copy(update={"name": "again"})
    first = simulate(str(run_dir / "study.yaml"), str(sites), runs=tmp_path / "runs", leave_out=["south"])
    second = simulate(renamed, sites, runs=tmp_path / "runs", port=9999)
    assert [run.folder for run in (first, second)] == [tmp_path / "runs/tiny", tmp_path / "runs/again"]
    assert [call["study"] for call in launched] == [study, renamed]
    assert [(call["leave_out"], call["engine"]) for call in launched] == [
        (["south"], Processes()),
        ((), Processes(9999)),
    ]
    assert first.finished
    assert first.scores()[-1].num_images == 18


def test_sites_and_classes_are_adopted(
    run_dir: Path, sites: Path, tmp_path: Path, launched: list[dict[str, Any]]
) -> None:
    study = read_study(run_dir / "study.yaml")
    other = study.model_copy(update={"classes": ("cat", "dog"), "sites": study.sites})
    simulate(other, sites, runs=tmp_path / "runs", adopt=True)
    assert launched[-1]["study"].classes == ("dark", "pale", "red")
    assert launched[-1]["study"].sites.train == ("north", "south")


def test_a_run_is_resumed_where_it_lies(run_dir: Path, sites: Path, launched: list[dict[str, Any]]) -> None:
    for run in (Run.open(run_dir), str(run_dir)):
        assert resume(run, sites).folder == run_dir
    assert [call["resume"] for call in launched] == [True, True]
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        resume(run_dir, sites)


def test_a_grid_is_compared_variant_by_variant(
    run_dir: Path, sites: Path, tmp_path: Path, launched: list[dict[str, Any]]
) -> None:
    base = read_study(run_dir / "study.yaml").model_dump(mode="json", exclude={"name"})
    grid = {"name": "paper", "study": base, "variants": {"a": {}, "b": {"seed": 4}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    comparison = compare(tmp_path / "grid.yaml", sites, runs=tmp_path / "runs")
    assert comparison.finished
    assert (comparison.folder / "comparison.md").is_file()
    assert [(v.name, v.seed, v.failure) for v in comparison.variants] == [("a", 0, ""), ("b", 0, "")]
    for variant in comparison.variants:
        assert variant.run is not None
        assert variant.run.folder == tmp_path / "runs" / "paper" / variant.name
    assert len(compare(tmp_path / "grid.yaml", sites, runs=tmp_path / "other", only=["b"]).variants) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_launchers_share_templates")
def test_a_real_federation_is_simulated_and_read(tmp_path: Path) -> None:
    assert site_main(["simulate", "--out", str(tmp_path / "sites"), "--images", "30", "--threads", "1"]) == 0
    study = read_study(ROOT / "configs/study/demo.yaml").model_copy(update={"rounds": 1})
    run = simulate(study, tmp_path / "sites", runs=tmp_path / "runs", adopt=True)
    assert run.finished, run.reason
    assert {record.outcome for record in run.rounds()} == {"ok"}
    pooled = [(record.after_round, record.side) for record in run.scores() if record.scope == "pooled"]
    assert pooled == [(0, "validation"), (1, "validation"), (1, "test")]
    one_process = simulate(study, tmp_path / "sites", runs=tmp_path / "inline", adopt=True, engine="inline")
    assert weights_of(one_process) == weights_of(run)
    assert without_seconds(one_process) == without_seconds(run)


def weights_of(run: Run) -> str:
    return digest(load_file(run.folder / "weights.safetensors")[0])


def without_seconds(run: Run) -> Any:
    """rounds.jsonl without what a clock says."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            clock = ("seconds", "train_s", "evaluate_s", "answered_after_s")
            return {key: without(one) for key, one in value.items() if key not in clock}
        return [without(one) for one in value] if isinstance(value, list) else value

    return [without(json.loads(line)) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
