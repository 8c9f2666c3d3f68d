"""Grids: what a variant changes, what is run again, and what the comparison says."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from common.config import AdamW, Sgd, StudyConfig
from common.errors import ConfigError, LaunchError
from common.metrics import Score, count
from server.cli.main import main
from server.config import SimulatedSites
from server.deployment.study_runner import StudyEnd
from server.report import write
from server.report.comparison import figures_of, write_comparison
from server.report.comparison_row import Row
from server.simulation import grid as experiments
from server.simulation import site_command
from server.simulation.engines import Processes
from server.simulation.grid import Grid, run_grid, studies
from server.state import RoundState
from server.storage import status
from server.storage.history import read_rounds

CALL_SITE = site_command.call_site
BASE: dict[str, Any] = {
    "classes": ["bkl", "mel", "nv"],
    "sites": {"train": ["north", "south"]},
    "model": {"encoder": "convnext_t", "image_size": 64},
    "rounds": 2,
    "local": {"batch_size": 8, "optimizer": {"kind": "sgd", "lr": 0.5, "momentum": 0.0}},
}


def grid(variants: dict[str, Any], **changes: Any) -> Grid:
    return Grid.model_validate({"name": "paper", "study": BASE, "variants": variants, **changes})


# --- what a variant changes ------------------------------------------------------------------


def test_a_variant_changes_what_it_says_and_nothing_else() -> None:
    found = studies(grid({"base": {}, "small": {"local": {"batch_size": 4}}}), "grid.yaml")
    base, small = found["base", 0], found["small", 0]
    assert small.local.batch_size == 4
    assert small.local.optimizer == base.local.optimizer == Sgd(lr=0.5, momentum=0.0)
    as_base = {"name": "base", "local": base.local}
    assert small.model_copy(update=as_base) == base


def test_a_setting_with_a_kind_replaces_the_bases_whole() -> None:
    """Otherwise AdamW would inherit the learning rate of SGD."""
    found = studies(grid({"adamw": {"local": {"optimizer": {"kind": "adamw"}}}}), "grid.yaml")
    assert found["adamw", 0].local.optimizer == AdamW()
    assert found["adamw", 0].local.batch_size == 8


def test_every_variant_is_run_with_every_seed_under_a_name_of_its_own() -> None:
    found = studies(grid({"a": {}, "b": {}}, seeds=[3, 5]), "grid.yaml")
    assert {key: study.name for key, study in found.items()} == {
        ("a", 3): "a-seed3", ("b", 3): "b-seed3", ("a", 5): "a-seed5", ("b", 5): "b-seed5",
    }  # fmt: skip
    assert [study.seed for study in found.values()] == [3, 3, 5, 5]


def test_a_variant_that_is_no_study_is_named() -> None:
    with pytest.raises(ConfigError, match=r"grid\.yaml, variant typo") as caught:
        studies(grid({"good": {}, "typo": {"local": {"learning_rate": 1}, "rounds": -1}}), "grid.yaml")
    assert "local.learning_rate: no such setting" in str(caught.value)
    assert "rounds: Input should be greater than or equal to 0" in str(caught.value)


def test_the_base_is_left_as_it_was() -> None:
    made = grid({"small": {"local": {"batch_size": 4}}})
    studies(made, "grid.yaml")
    assert made.study["local"]["batch_size"] == 8


# --- what is run, and what is kept -----------------------------------------------------------


def score(labels: list[int], predictions: list[int]) -> Score:
    probabilities_NC = np.full((len(labels), 3), 0.1)
    probabilities_NC[np.arange(len(labels)), predictions] = 0.8
    return count(probabilities_NC, np.asarray(labels), loss_sum=float(len(labels)))


def leave_a_run(run_dir: Path, study: StudyConfig, last_round: int) -> None:
    """What a run that got to `last_round` leaves."""
    run_dir.mkdir(parents=True)
    (run_dir / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json")))
    for number in range(1, last_round + 1):
        scores = {"north": score([0, 0, 1, 2], [0, 1, 1, 2]), "south": score([2, 2], [2, 0])}
        closing = number > study.rounds
        state = RoundState(
            round=number, weights={}, layout={}, preprocessing={}, seconds=30.0, closing=closing, scores=scores,
            test_scores=scores if closing else {},
        )  # fmt: skip
        write.append_round(run_dir, state, study)


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(
        yaml.safe_dump({"name": "paper", "study": BASE, "variants": {"a": {}, "b": {"rounds": 3}}})
    )
    federation: dict[str, Any]
    federation = {"synthetic": True, "classes": BASE["classes"], "sites": {"north": 4, "south": 2}}
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(federation))
    for name in federation["sites"]:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "data": {"root": name}}))
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the studies that were run; each run finishes."""
    names: list[str] = []

    def run(
        study: StudyConfig, _sites: Path, _federation: SimulatedSites, run_dir: Path, **_: Any
    ) -> StudyEnd:
        names.append(study.name)
        if run_dir.exists():
            run_dir.rename(run_dir.with_name(f"{run_dir.name}.1"))
        leave_a_run(run_dir, study, study.rounds + 1)
        return StudyEnd(True, "")

    monkeypatch.setattr(experiments, "run_study", run)
    return names


def failures(grid: tuple[Path, tuple[Row, ...]]) -> list[str | None]:
    return [row.failure for row in grid[1]]


def test_a_grid_that_is_run_again_keeps_what_has_finished(
    grid_file: Path, tmp_path: Path, ran: list[str]
) -> None:
    assert failures(run_grid(grid_file, tmp_path, tmp_path / "runs")) == [None, None]
    assert failures(run_grid(grid_file, tmp_path, tmp_path / "runs")) == [None, None]
    assert ran == ["a", "b"]


def test_every_encoder_of_what_is_left_to_run_is_asked_for_once(
    grid_file: Path, tmp_path: Path, ran: list[str], asked_of_the_sites: list[list[str]]
) -> None:
    text = yaml.safe_load(grid_file.read_text())
    text["variants"] |= {
        "c": {"model": {"encoder": "test_vit2", "image_size": 30}},
        "d": {"model": {"encoder": "test_vit2", "image_size": 30}, "rounds": 1},
        "e": {
            "model": {
                "kind": "clip",
                "library": "open_clip",
                "encoder": "RN50",
                "text": {"kind": "random", "width": 1024},
            }
        },
    }
    grid_file.write_text(yaml.safe_dump(text))
    base = text["study"]["model"]
    own = f"{base['encoder']}" + (f":{base['image_size']}" if "image_size" in base else "")
    for _ in range(2):  # the second time everything has finished
        run_grid(grid_file, tmp_path, tmp_path / "runs")
    assert asked_of_the_sites == [
        ["check-encoders", own, "test_vit2:30", "--library", "timm"],
        ["check-encoders", "RN50", "--library", "open_clip"],
    ]


def test_an_encoder_that_no_site_could_build_ends_a_grid_before_its_first_run(
    grid_file: Path, tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = yaml.safe_load(grid_file.read_text())
    text["variants"]["c"] = {"model": {"encoder": "nosuchnet"}}
    grid_file.write_text(yaml.safe_dump(text))
    monkeypatch.setattr(site_command, "call_site", CALL_SITE)
    with pytest.raises(
        ConfigError, match=r"(?s)paper has encoders that no site could build.*no encoder 'nosuchnet'"
    ):
        run_grid(grid_file, tmp_path, tmp_path / "runs")
    assert ran == []


def test_a_run_that_stopped_early_or_was_of_another_study_is_run_again(
    grid_file: Path, tmp_path: Path, ran: list[str]
) -> None:
    found = studies(Grid.model_validate(yaml.safe_load(grid_file.read_text())), "")
    folder = tmp_path / "runs" / "paper"
    leave_a_run(folder / "a", found["a", 0], last_round=2)  # the closing evaluation would be 3
    leave_a_run(folder / "b", found["b", 0].model_copy(update={"seed": 9}), last_round=4)
    assert failures(run_grid(grid_file, tmp_path, tmp_path / "runs")) == [None, None]
    assert ran == ["a", "b"]


def test_only_the_variants_asked_for_are_run(grid_file: Path, tmp_path: Path, ran: list[str]) -> None:
    assert failures(run_grid(grid_file, tmp_path, tmp_path / "runs", only=("b",))) == [None]
    assert ran == ["b"]


def test_a_variant_that_the_grid_does_not_have_is_named_before_anything_runs(
    grid_file: Path, tmp_path: Path, ran: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"--only: paper has no variant c; it has a, b"):
        run_grid(grid_file, tmp_path, tmp_path / "runs", only=("a", "c"))
    assert ran == []


@pytest.mark.parametrize(
    ("variants", "below"),
    [
        (["a", "b"], ["a", "b"]),
        ([f"v{number}" for number in range(41)], [*(f"v{number}" for number in range(40)), "and 1 more"]),
    ],
    ids=["two", "one more than are listed"],
)
def test_a_plan_lists_the_names_of_the_rows_and_runs_nothing(
    variants: list[str], below: list[str], grid_file: Path, tmp_path: Path, ran: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    values = {"name": "paper", "study": BASE, "variants": {name: {} for name in variants}, "seeds": [0, 1]}
    grid_file.write_text(yaml.safe_dump(values, sort_keys=False))
    asked = ["compare", str(grid_file), "--sites", str(tmp_path), "--runs", str(tmp_path / "runs"), "--plan"]
    assert main(asked) == 0
    told = [line.strip() for line in capfd.readouterr().err.splitlines()]
    assert told[-len(below) :] == below
    assert told[-len(below) - 1].endswith(f"{len(variants)} rows, by the names that --only takes:")
    assert told[-len(below) - 2].endswith(
        f"paper has {2 * len(variants)} runs of {4 * len(variants)} rounds together"
    )
    assert ran == []
    assert not (tmp_path / "runs").exists()


def test_the_plan_and_the_time_left_stand_in_the_log(
    grid_file: Path,
    tmp_path: Path,
    ran: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 60.0, 60.0, 200.0])  # run a: 2 rounds in 60 s; run b has 3 rounds
    monkeypatch.setattr(experiments.time, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO", "consilium"):
        run_grid(grid_file, tmp_path, tmp_path / "runs")
    assert "paper has 2 runs of 5 rounds together" in caplog.text
    assert "about 90 s left for 1 run of 3 rounds, as long as the rounds so far" in caplog.text
    assert ran == ["a", "b"]


def test_a_comparison_stands_there_after_every_run(
    grid_file: Path, tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed: Callable[..., StudyEnd] = experiments.run_study

    def run(study: StudyConfig, *arguments: Any, **more: Any) -> StudyEnd:
        if study.name == "b":
            raise KeyboardInterrupt
        return succeed(study, *arguments, **more)

    monkeypatch.setattr(experiments, "run_study", run)
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid_file, tmp_path, tmp_path / "runs")
    assert "| a | 0 | finished |" in (tmp_path / "runs" / "paper" / "comparison.md").read_text()


@pytest.mark.parametrize("error", [ConfigError("no vectors"), LaunchError("no port")])
def test_whatever_ends_one_run_does_not_end_the_grid(
    error: Exception, grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> StudyEnd:
        raise error

    monkeypatch.setattr(experiments, "run_study", run)
    assert failures(run_grid(grid_file, tmp_path, tmp_path / "runs")) == [str(error), str(error)]


def test_a_run_that_fails_is_a_row_and_the_others_go_on(
    grid_file: Path, tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed: Callable[..., StudyEnd] = experiments.run_study

    def run(study: StudyConfig, *arguments: Any, **more: Any) -> StudyEnd:
        if study.name == "a":
            raise LaunchError("port 9092 is taken")
        return succeed(study, *arguments, **more)

    monkeypatch.setattr(experiments, "run_study", run)
    folder, rows = run_grid(grid_file, tmp_path, tmp_path / "runs")
    assert failures((folder, rows)) == ["port 9092 is taken", None]
    assert [row.run_dir for row in rows] == [folder / "a", folder / "b"]
    text = (tmp_path / "runs" / "paper" / "comparison.md").read_text()
    assert "failed: port 9092 is taken" in text
    assert ran == ["b"]


def test_a_run_that_is_incomplete_is_a_row_that_says_so_and_is_resumed(
    grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def run(study: StudyConfig, *arguments: Any, engine: object, resume: bool = False) -> StudyEnd:
        assert engine == Processes()
        asked.append((study.name, resume))
        run_dir = arguments[-1]
        if not resume:
            leave_a_run(run_dir, study, study.rounds + 1)
        ended: Any = "finished" if resume or study.name == "b" else status.INCOMPLETE
        status.set_status(run_dir, ended, "2 rounds; no unseen")
        return StudyEnd(ended == "finished", "2 rounds; no unseen", ended == status.INCOMPLETE)

    monkeypatch.setattr(experiments, "run_study", run)
    _, rows = run_grid(grid_file, tmp_path, tmp_path / "runs")
    assert [(row.failure, row.lacking) for row in rows] == [(None, "2 rounds; no unseen"), (None, "")]
    text = (tmp_path / "runs" / "paper" / "comparison.md").read_text()
    assert "| finished, incomplete: 2 rounds; no unseen | 2 |" in text
    _, rows = run_grid(grid_file, tmp_path, tmp_path / "runs")
    assert asked == [("a", False), ("b", False), ("a", True)]
    assert [row.lacking for row in rows] == ["", ""]


def test_a_run_that_failed_after_its_closing_evaluation_is_run_again(
    grid_file: Path, tmp_path: Path, ran: list[str]
) -> None:
    found = studies(Grid.model_validate(yaml.safe_load(grid_file.read_text())), "")
    folder = tmp_path / "runs" / "paper"
    leave_a_run(folder / "a", found["a", 0], last_round=3)
    status.set_status(folder / "a", "failed", "1 of 2 training sites scored the heads")
    leave_a_run(folder / "b", found["b", 0], last_round=4)
    run_grid(grid_file, tmp_path, tmp_path / "runs")
    assert ran == ["a"]


# --- what the comparison says ----------------------------------------------------------------


@pytest.fixture
def row(tmp_path: Path) -> Row:
    study = studies(grid({"a": {}}), "")["a", 0]
    leave_a_run(tmp_path / "a", study, last_round=3)
    return Row("a", 0, read_rounds(tmp_path / "a"), None, tmp_path / "a")


def test_a_row_holds_the_figures_of_the_final_weights(row: Row) -> None:
    line = figures_of(row)
    # north: 3 of 4 right, recalls 1/2, 1, 1 → 2.5/3. south: class 2 only, 1 of 2 right.
    assert line["balanced accuracy north"] == "0.833"
    assert line["balanced accuracy south"] == "0.500"
    # together: 4 of 6 right; recalls 1/2, 1, 2/3 → 2.1667/3
    assert line["accuracy"] == "0.667"
    assert line["balanced accuracy"] == "0.722"
    # precisions 1/2, 1/2, 1 → F1 1/2, 2/3, 4/5, weighted (2 * 1/2 + 1 * 2/3 + 3 * 4/5) / 6 = 0.6778
    assert line["weighted F1"] == "0.678"
    # three rounds of 30 s; the last one scores what came out of round 2
    assert (line["minutes"], line["rounds"], line["outcome"]) == ("1.5", "2", "finished")


@pytest.mark.parametrize(
    ("failure", "said"), [("no quorum", "failed: no quorum"), (None, "failed: no scores")]
)
def test_a_run_without_an_end_is_a_row_that_says_so(failure: str | None, said: str) -> None:
    assert figures_of(Row("a", 0, (), failure, Path("a"))) == {"variant": "a", "seed": "0", "outcome": said}


@pytest.mark.parametrize("synthetic", [True, False])
def test_a_comparison_is_a_table_a_csv_and_a_picture(row: Row, tmp_path: Path, synthetic: bool) -> None:
    federation = SimulatedSites(synthetic=synthetic, classes=("bkl", "mel"), sites={"north": 4})
    folder = tmp_path / "out"
    write_comparison(
        folder, [row, Row("b", 0, (), "no quorum, said: north | south", folder / "b")], federation
    )
    assert {path.name for path in folder.iterdir()} == {"comparison.md", "comparison.csv", "comparison.png"}
    table = (folder / "comparison.md").read_text().splitlines()
    assert ("SYNTHETIC" in table[0]) == synthetic
    with (folder / "comparison.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["balanced accuracy"] == "0.722"
    assert second["outcome"] == "failed: no quorum, said: north | south"
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    widths = {line.replace("\\|", "").count("|") for line in table if line.startswith("|")}
    assert len(widths) == 1  # every row has as many cells as the header
