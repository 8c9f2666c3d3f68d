"""A study with `out_of_distribution`, from the sites' sums to the columns of `predict`."""

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client import predict
from client.cli.main import main
from client.config import PolicyConfig
from client.governance.policy import enforce_answer
from client.trainer import Trainer
from common import wire
from common.config import StudyConfig
from common.errors import PolicyRefusal
from common.heads.outliers import FILE, OutlierRecord, load, save
from common.weights import digest, load_file
from common.wire import codec
from consilium_fl import load_predictor
from server.conduct import conduct
from server.config import ServerConfig
from server.rounds.sites import InProcessSites
from tests.test_calibration import STUDY
from tests.test_three_sides import SIDES, hospital

Answers = list[tuple[wire.HeadPlan, wire.HeadAnswer]]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answers]:
    """A study of two sites with 9 validation images each, and what was asked towards the heads."""
    base, answers = tmp_path_factory.mktemp("outliers"), Answers()
    study = StudyConfig(**STUDY, out_of_distribution={"flagged": 0.2, "least_images": 20, "shrinkage": 0.5})
    run = base / "run"
    run.mkdir()
    (run / "study.yaml").write_text(study.model_dump_json())  # JSON is YAML

    def kept(trainer: Trainer) -> Callable[[bytes], bytes]:
        def answer(request: bytes) -> bytes:
            reply = trainer.answer(request)
            plan, said = codec.from_bytes(request), codec.from_bytes(reply)
            if isinstance(plan, wire.HeadPlan):
                assert isinstance(said, wire.HeadAnswer)
                answers.append((plan, said))
            return reply

        return answer

    names = ("north", "south")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.log.start", lambda *_: None)
        sites = {name: kept(Trainer(hospital(base / name, name, None))) for name in names}
        conduct(
            ServerConfig(study=run / "study.yaml", run_dir=run, node_ids={"north": 1, "south": 2}),
            InProcessSites(sites),
        )
    return run, answers


@pytest.fixture
def folder(finished: tuple[Path, Answers], tmp_path: Path) -> Path:
    """A copy of its run, with a limit of 1 in the place of the one that 18 images do not give."""
    copy = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    detector, record = found_in(copy)
    save(copy, detector, record.model_copy(update={"limit": 1.0, "why_none": ""}))
    return copy


@pytest.fixture
def images(finished: tuple[Path, Answers]) -> list[Path]:
    """Three test images of north."""
    return sorted((finished[0].parent / "north").glob("?-9.png"))


def found_in(folder: Path) -> tuple[Any, OutlierRecord]:
    found = load(folder, 3)
    assert found is not None
    return found


def test_the_sums_are_asked_for_once_and_the_counts_once(finished: tuple[Path, Answers]) -> None:
    folder, answers = finished
    asked = [plan.step.kind for plan, _ in answers if plan.site == "north"]
    assert asked == [
        "statistics",
        "statistics",
        "outliers",
        "score",
    ]  # sums of the features, and of their products
    assert [sum(said.outliers or ()) for plan, said in answers if plan.step.kind == "outliers"] == [9, 9]
    _, record = found_in(folder)
    assert record.weights_sha256 == digest(load_file(folder / "weights.safetensors")[0])
    assert (list(record.sites), record.without, record.num_images) == (["north", "south"], (), 18)
    assert "18 validation image(s) were counted, expected 20 or more" in record.why_none
    assert (folder.parent / "north/state/audit.jsonl").read_text().count('"outliers":9') == 1
    report = (folder / "report.md").read_text()
    assert "## Outlier score" in report
    assert "**No limit**: 18 validation image(s)" in report


def test_training_images_have_a_mean_squared_score_of_about_one_and_noise_more(
    finished: tuple[Path, Answers], tmp_path: Path
) -> None:
    """Every class has as many images, so each weighs the same; the nearest class may be nearer than the own."""
    folder, _ = finished
    predictor = load_predictor(folder, device="cpu")
    # Images 0 to 5 of a class are trained on (`SIDES`).
    train = [
        folder.parent / site / f"{place}-{number}.png"
        for site in ("north", "south")
        for place in range(3)
        for number, side in enumerate(SIDES)
        if side == "train"
    ]
    scores = np.array([one.outlier_score for one in predictor.predict(train)])
    assert 0.8 < (scores**2).mean() <= 1.0 + 1e-6
    Image.fromarray(np.full((40, 40, 3), 255, np.uint8)).save(tmp_path / "white.png")
    (white,) = predictor.predict(tmp_path / "white.png")
    assert white.outlier_score is not None
    assert white.outlier_score > scores.max()
    assert white.unlike_training is None  # there is no limit


def test_a_line_has_the_score_and_the_flag(
    folder: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--study", str(folder), "--device", "cpu", *map(str, images)]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(lines) == 3
    for line in lines:
        assert line["unlike_training"] == ("yes" if float(line["outlier_score"]) > 1 else "no")
    predictor = load_predictor(folder, device="cpu")
    assert "above 1 an image is flagged" in predictor.about[-1]
    row = predictor.predict(images)[0].as_row()
    assert (row["outlier_score"], row["unlike_training"]) == (
        pytest.approx(float(lines[0]["outlier_score"]), abs=1e-4),
        lines[0]["unlike_training"] == "yes",
    )


def test_views_have_the_score_of_the_image_as_it_is(folder: Path, images: list[Path]) -> None:
    one, four = (load_predictor(folder, device="cpu", views=views).predict(images) for views in (1, 4))
    assert [a.outlier_score for a in one] == pytest.approx([b.outlier_score for b in four])


def test_the_contact_sheet_flags_what_the_table_flags(
    folder: Path, images: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("captum", reason="heat maps need the extra `explain`")
    detector, record = found_in(folder)
    scores = sorted(one.outlier_score or 0 for one in load_predictor(folder, device="cpu").predict(images))
    save(folder, detector, record.model_copy(update={"limit": (scores[1] + scores[2]) / 2}))
    options = ["--study", str(folder), "--device", "cpu", "--explain", str(tmp_path / "heat")]
    assert main(["predict", *options, "--out", str(tmp_path / "out.csv"), *map(str, images)]) == 0
    page = (tmp_path / "heat" / "index.html").read_text()
    assert page.count("<strong>unlike the training images</strong>") == 1
    assert all(f"outlier score {score:.2f}" in page for score in scores)
    assert (tmp_path / "out.csv").read_text().count(",yes") == 1


def test_other_weights_and_a_folder_without_the_file_have_no_score(folder: Path, images: list[Path]) -> None:
    detector, record = found_in(folder)
    save(folder, detector, record.model_copy(update={"weights_sha256": "0" * 64}))
    predictor = load_predictor(folder, device="cpu")
    assert f"no outlier_score: {FILE} is of the weights 000000000000" in predictor.about[-1]
    assert predictor.predict(images)[0].outlier_score is None
    (folder / FILE).unlink()
    assert "which the server of the study writes" in load_predictor(folder, device="cpu").about[-1]
    assert "outlier_score" not in load_predictor(folder, device="cpu").predict(images)[0].as_row()


def test_a_network_whose_features_were_adapted_has_no_score(folder: Path, images: list[Path]) -> None:
    adapted = predict.load(folder, None, None, torch.device("cpu")).without_outliers("adapted")
    assert adapted.about_outliers == "no outlier_score: adapted"
    assert adapted.judge(predict.squares(adapted, images)).outlier_scores_N is None
    assert adapted.outliers is None


@pytest.mark.parametrize("rule", [{"calibration": False}, {"min_score_cell": 3}, {"scores": False}])
def test_the_second_barrier_stops_counts_that_the_policy_keeps_back(
    finished: tuple[Path, Answers], rule: dict[str, Any]
) -> None:
    answer = next(said for plan, said in finished[1] if plan.step.kind == "outliers")
    enforce_answer(answer, 0, PolicyConfig())
    with pytest.raises(PolicyRefusal, match="an answer holds counts by outlier score"):
        enforce_answer(answer, 0, PolicyConfig(**rule))
    with pytest.raises(PolicyRefusal, match="min_cell"):
        enforce_answer(answer, 0, PolicyConfig(min_cell=10))


@pytest.mark.slow
def test_an_onnx_file_gives_the_same_scores_without_torch(
    folder: Path, images: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    from client.classification.exported import load_onnx

    out = tmp_path / "skin.onnx"
    assert main(["export", str(folder), "--format", "onnx", "--out", str(out)]) == 0
    assert load_onnx(out).label.out_of_distribution == found_in(folder)[1]
    by_torch, by_onnx = tmp_path / "torch.csv", tmp_path / "onnx.csv"
    assert (
        main(
            ["predict", "--study", str(folder), "--device", "cpu", "--out", str(by_torch), *map(str, images)]
        )
        == 0
    )
    assert main(["predict", "--onnx", str(out), "--out", str(by_onnx), *map(str, images)]) == 0
    rows = [list(csv.DictReader(path.read_text().splitlines())) for path in (by_torch, by_onnx)]
    for left, right in zip(*rows, strict=True):
        assert left["unlike_training"] == right["unlike_training"]
        assert float(left["outlier_score"]) == pytest.approx(float(right["outlier_score"]), rel=1e-3)
