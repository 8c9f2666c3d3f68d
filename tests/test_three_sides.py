"""A study looks at test images once: after everything has been chosen."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.config import ColumnSplit, CsvData, NoSplit, SiteConfig
from client.config.data import Columns
from client.data.simulation.site_files import SIMULATED
from client.trainer import Trainer
from common.config import StudyConfig
from common.errors import ConfigError
from common.weights import digest, load_file
from server.conduct import conduct
from server.config import ServerConfig
from server.rounds.sites import InProcessSites
from server.storage import history

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
CLASSES = ("dark", "pale", "red")
SIDES = ("train",) * 6 + ("validation",) * 3 + ("test",) * 3
BY_VALIDATION = {"selection": {"metric": "loss", "patience": 2}, "rounds": 6}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


def hospital(folder: Path, name: str, shifted: str | None) -> SiteConfig:
    """Noise with a faint colour by class. Labels of the side that is `shifted` are each another class's."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(sum(name.encode()))
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "lesion", "split"])
        for place in range(len(CLASSES)):
            for number, side in enumerate(SIDES):
                pixels = draws.integers(0, 200, (40, 40, 3)) + 40 * np.eye(3, dtype=np.int64)[place]
                file_name = f"{place}-{number}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(folder / file_name)
                label = CLASSES[(place + (side == shifted)) % 3]
                table.writerow([file_name, label, f"{place}-{number}", side])
    return SiteConfig(
        name=name,
        data=CsvData(labels=folder / "labels.csv", columns=Columns(group="lesion", split="split")),
        split=ColumnSplit(),
        state_dir=folder / "state",
        device="cpu",
        threads=1,
        policy=SIMULATED,
    )


def run(folder: Path, study: StudyConfig, shifted: str | None = None) -> Path:
    """A study of north and south; its run folder."""
    sites = {name: hospital(folder / name, name, shifted) for name in ("north", "south")}
    return conducted(folder, study, sites)


def conducted(folder: Path, study: StudyConfig, sites: Mapping[str, SiteConfig]) -> Path:
    (folder / "study.yaml").write_text(study.model_dump_json())  # JSON is YAML
    config = ServerConfig(
        study=folder / "study.yaml", run_dir=folder / "run", node_ids=dict.fromkeys(sites, 1)
    )
    conduct(config, InProcessSites({name: Trainer(site).answer for name, site in sites.items()}))
    return folder / "run"


def choices(run_dir: Path) -> dict[str, Any]:
    """Everything that a study has chosen, and the weights it has come to."""
    rounds = history.read_rounds(run_dir)
    weights = {path.name: digest(load_file(path)[0]) for path in sorted(run_dir.glob("*.safetensors"))}
    tested = rounds[-1].test
    return {
        "best": [record.best for record in rounds],
        "rounds": len(rounds),
        "tested": None if tested is None else tested.after_round,
        "curves": [None if r.validation is None else r.validation.pooled.figures.loss for r in rounds],
        "weights": weights,
    }


def test_other_labels_of_every_test_image_change_no_choice(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(**BY_VALIDATION)
    honest, disturbed = run(tmp_path / "a", study), run(tmp_path / "b", study, shifted="test")
    assert choices(disturbed) == choices(honest)
    figures = [history.read_rounds(folder)[-1].test for folder in (honest, disturbed)]
    assert figures[0] is not None
    assert figures[1] is not None
    assert figures[0].pooled.figures.loss != figures[1].pooled.figures.loss


def test_other_labels_of_validation_images_do_change_the_choice(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """So the test above would notice."""
    study = make_study(**BY_VALIDATION)
    honest, disturbed = run(tmp_path / "a", study), run(tmp_path / "b", study, shifted="validation")
    assert choices(disturbed)["best"] != choices(honest)["best"]


def test_the_same_holds_where_the_curves_are_of_test_images(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(**BY_VALIDATION, curves_on="test")
    honest, disturbed = run(tmp_path / "a", study), run(tmp_path / "b", study, shifted="test")
    assert choices(disturbed) == choices(honest)
    report = (honest / "report.md").read_text()
    assert "They were scored in the rounds as well, for the curves." in report
    assert "| round | sites that trained | images | training loss | test loss after it, pooled |" in report


def test_the_report_says_that_the_test_was_opened_once(make_study: MakeStudy, tmp_path: Path) -> None:
    folder = run(tmp_path / "a", make_study(**BY_VALIDATION))
    report = (folder / "report.md").read_text()
    assert "The figures are of test images, which were scored once, with these weights." in report
    assert "validation loss after it, pooled" in report
    records = history.read_rounds(folder)
    assert [record.test is None for record in records] == [True] * (len(records) - 1) + [False]
    best = records[-1].best
    assert best is not None
    assert records[-1].test is not None
    assert records[-1].test.after_round == best.round


def test_a_study_that_chooses_by_images_that_no_site_has_does_not_begin(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    bare = {
        name: hospital(tmp_path / name, name, None).model_copy(
            update={
                "data": CsvData(labels=tmp_path / name / "labels.csv", columns=Columns(group="lesion")),
                "split": NoSplit(all="train"),
            }
        )
        for name in ("north", "south")
    }
    with pytest.raises(
        ConfigError, match=r"chooses by validation images, and no training site has any: set `split"
    ):
        conducted(tmp_path, make_study(**BY_VALIDATION), bare)


def test_validation_images_of_one_class_choose_no_model(make_study: MakeStudy, tmp_path: Path) -> None:
    """A model that says `dark` of everything would have the best balanced accuracy there is."""
    sites = {name: hospital(tmp_path / name, name, None) for name in ("north", "south")}
    for name in sites:
        table = tmp_path / name / "labels.csv"
        lines = [
            line if line.startswith("0-") else line.replace(",validation", ",test")
            for line in table.read_text().splitlines()
        ]
        table.write_text("\n".join(lines))
    study = make_study(selection={"metric": "balanced_accuracy"})
    with pytest.raises(
        ConfigError, match=r"pale \(12 training images\), red \(12 training images\) have no validation image"
    ):
        conducted(tmp_path, study, sites)
