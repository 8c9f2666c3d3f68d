"""A study with `calibration`, from the sites' counts to calibrated probabilities and sets of classes."""

import csv
import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.answers.calibration import is_due
from client.cli.main import main
from client.config import PolicyConfig, SiteConfig
from client.governance.policy import allows_calibration, enforce_answer
from client.trainer import Trainer
from common.calibration import Calibration
from common.calibration.conformal import threshold
from common.config import StudyConfig
from common.errors import ConfigError, PolicyRefusal, UpdateRejected
from common.weights import digest, load_file
from common.wire import codec
from consilium_fl import load_predictor
from server.conduct import conduct
from server.config import ServerConfig
from server.rounds import calibration
from server.rounds.sites import InProcessSites
from server.storage.calibration import load
from tests.test_three_sides import CLASSES, hospital

MakeStudy = Callable[..., StudyConfig]
Answers = list[Any]
STUDY: dict[str, Any] = {
    "name": "tiny",
    "classes": CLASSES,
    "sites": {"train": ("north", "south")},
    "model": {"encoder": "test_convnext", "image_size": 32},
    "rounds": 1,
    "local": {"batch_size": 8, "augmentation": "none", "optimizer": {"kind": "sgd", "lr": 0.05}},
    "deadlines": {"repeat_after_s": 0},
    "seed": 3,
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


def conducted(study: StudyConfig, folder: Path, *sites: SiteConfig) -> tuple[Path, Answers]:
    """The run's folder, and plan and answer of every round."""
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(study.model_dump_json())  # JSON is YAML
    config = ServerConfig(
        study=folder / "study.yaml", run_dir=folder, node_ids={site.name: 1 for site in sites}
    )
    answers: Answers = []

    def kept(trainer: Trainer) -> Callable[[bytes], bytes]:
        def answer(request: bytes) -> bytes:
            reply = trainer.answer(request)
            answers.append((codec.from_bytes(request), codec.from_bytes(reply)))
            return reply

        return answer

    conduct(config, InProcessSites({site.name: kept(Trainer(site)) for site in sites}))
    return folder, [pair for pair in answers if pair[0].kind == "round"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answers]:
    """A study of two sites with 9 validation images each; the sites' folders are beside the run's."""
    base = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.log.start", lambda *_: None)
        sites = [hospital(base / name, name, None) for name in ("north", "south")]
        return conducted(StudyConfig(**STUDY, calibration={"least_images": 10}), base / "run", *sites)


@pytest.fixture
def folder(finished: tuple[Path, Answers], tmp_path: Path) -> Path:
    """A copy of its run."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


@pytest.fixture
def images(finished: tuple[Path, Answers]) -> list[Path]:
    """Three test images of north."""
    return sorted((finished[0].parent / "north").glob("?-9.png"))


def kept_of(folder: Path) -> Calibration:
    found = load(folder)
    assert found is not None
    return found


def test_a_study_counts_once_and_keeps_its_temperature_beside_its_weights(
    finished: tuple[Path, Answers],
) -> None:
    folder, answers = finished
    came = {(plan.site, plan.train): answer.calibration is not None for plan, answer in answers}
    assert came == {
        ("north", True): False, ("south", True): False, ("north", False): True, ("south", False): True,
    }  # fmt: skip
    kept = kept_of(folder)
    assert kept.weights_sha256 == digest(load_file(folder / "weights.safetensors")[0])
    assert (list(kept.sites), kept.without, kept.after_round) == (["north", "south"], (), 1)
    assert kept.num_images == 18
    assert kept.fitted is not None
    assert kept.fitted.after.loss <= kept.fitted.before.loss
    log = (folder.parent / "north/state/audit.jsonl").read_text()
    assert log.count('"calibrated":[3,3,3]') == 1


def test_predictions_have_the_temperature_and_keep_the_predicted_class(
    folder: Path, images: list[Path]
) -> None:
    plain = load_predictor(folder, device="cpu", temperature=False).predict(images)
    warm = load_predictor(folder, device="cpu")
    fitted = kept_of(folder).fitted
    assert fitted is not None
    assert "temperature" in warm.about[0]
    for before, after in zip(plain, warm.predict(images), strict=True):
        assert after.predicted == before.predicted
        powers = np.array([*before.probabilities.values()]) ** (1 / fitted.temperature)
        np.testing.assert_allclose([*after.probabilities.values()], powers / powers.sum(), rtol=1e-5)


def test_a_line_has_the_set_that_was_asked_for(
    folder: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", "--study", str(folder), "--device", "cpu", *map(str, images)]
    assert main([*arguments, "--coverage", "0.8"]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    largest = threshold(kept_of(folder).sites, 0.8)
    own = load_predictor(folder, device="cpu", temperature=False).predict(images)
    for line, prediction in zip(found, own, strict=True):
        likely = {name for name, p in prediction.probabilities.items() if p >= math.exp(-largest)}
        assert set(line["set 0.8"].split()) == likely | {line["predicted"]}
    assert main([*arguments, "--coverage", "0.7", "--site", "north"]) == 0
    assert "set 0.7" in capsys.readouterr().out.splitlines()[0]


def test_the_contact_sheet_shows_the_probabilities_and_sets_of_the_table(
    folder: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("captum", reason="heat maps need the extra `explain`")
    heat, out = tmp_path / "heat", tmp_path / "out.csv"
    options = [
        "--study",
        str(folder),
        "--device",
        "cpu",
        "--coverage",
        "0.8",
        "--explain",
        str(heat),
        "--out",
        str(out),
    ]
    assert main(["predict", *options, *map(str, images)]) == 0
    page = (heat / "index.html").read_text()
    for line in csv.DictReader(io.StringIO(out.read_text())):
        assert f"<b>{line['predicted']}</b> {100 * float(line[line['predicted']]):.1f} %" in page
        assert f"<br>set: {', '.join(line['set 0.8'].split())}" in page
    assert "the set holds the true class with a chance of 80 % or more" in page
    assert "temperature" in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"coverage": 0.999}, "support at most 0.9"),
        ({"coverage": 0.9, "site": "east"}, "found 'east', expected a site whose validation images were counted"),
        ({"site": "north"}, "--site is for sets of classes"),
        ({"coverage": 0.9, "views": 2}, "one view of each image"),
    ],
)  # fmt: skip
def test_a_set_that_the_counts_do_not_support_is_refused(
    folder: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_predictor(folder, device="cpu", **options)


def test_other_weights_and_runs_without_counts_keep_their_probabilities(folder: Path) -> None:
    other = kept_of(folder).model_copy(update={"weights_sha256": "0" * 64})
    (folder / "calibration.json").write_text(other.model_dump_json())
    assert (
        "not calibrated: the run's calibration is of the weights 000000000000"
        in (load_predictor(folder, device="cpu").about[0])
    )
    with pytest.raises(ConfigError, match="so there is no set with a stated coverage"):
        load_predictor(folder, device="cpu", coverage=0.9)
    (folder / "calibration.json").unlink()
    assert load_predictor(folder, device="cpu").about == ()
    with pytest.raises(ConfigError, match="the study did not set `calibration`"):
        load_predictor(folder, device="cpu", coverage=0.9)


def test_a_site_whose_policy_keeps_counts_back_is_named(
    make_study: MakeStudy, finished: tuple[Path, Answers], tmp_path: Path
) -> None:
    north, south = (hospital(tmp_path / name, name, None) for name in ("north", "south"))
    strict = south.policy.model_copy(update={"calibration": False})
    south = south.model_copy(update={"policy": strict})
    study = make_study(rounds=1, calibration={"least_images": 10_000})
    folder, answers = conducted(study, tmp_path / "run", north, south)
    assert [answer.calibration for plan, answer in answers if plan.site == "south"] == [None, None]
    kept = kept_of(folder)
    assert (list(kept.sites), kept.without, kept.fitted) == (["north"], ("south",), None)
    assert "too few" in load_predictor(folder, device="cpu").about[0]


@pytest.mark.parametrize("rule", [{"calibration": False}, {"min_score_cell": 3}, {"scores": False}])
def test_the_second_barrier_stops_counts_that_the_policy_keeps_back(
    finished: tuple[Path, Answers], rule: dict[str, Any]
) -> None:
    answer = finished[1][-1][1]
    enforce_answer(answer, 0, PolicyConfig())
    assert not allows_calibration(PolicyConfig(**rule))
    with pytest.raises(PolicyRefusal, match="an answer holds calibration counts"):
        enforce_answer(answer, 0, PolicyConfig(**rule))
    with pytest.raises(PolicyRefusal, match="min_cell"):
        enforce_answer(answer, 0, PolicyConfig(min_cell=4))


def test_a_study_without_the_setting_sends_what_it_sent_before(
    make_study: MakeStudy, finished: tuple[Path, Answers]
) -> None:
    assert "calibration" not in make_study().model_dump()
    closing, answer = finished[1][-1]
    assert is_due(closing)
    assert not is_due(closing.model_copy(update={"study": make_study()}))
    assert "calibration" not in answer.model_copy(update={"calibration": None}).model_dump()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy": {"noise": 1.0, "sampling_rate": 0.1}}, "does not go with privacy"),
        (
            {"secure_aggregation": {}, "admission": {"max_norm_ratio": None}},
            "does not go with secure_aggregation",
        ),
    ],
)
def test_a_study_with_noise_or_masks_has_no_calibration(
    make_study: MakeStudy, changes: dict[str, Any], said: str
) -> None:
    sites = {"train": ("north", "south", "east")}
    with pytest.raises(ValueError, match=said):
        make_study(calibration={}, sites=sites, **changes)


def test_counts_of_other_images_or_out_of_turn_are_refused(finished: tuple[Path, Answers]) -> None:
    (closing, answer), (training, trained) = finished[1][-1], finished[1][0]
    assert calibration.admit(closing, answer, (3, 3, 3)) == answer.calibration
    with pytest.raises(UpdateRejected, match="as enrolled"):
        calibration.admit(closing, answer, (4, 3, 3))
    early = trained.model_copy(update={"calibration": answer.calibration})
    with pytest.raises(UpdateRejected, match="does not ask"):
        calibration.admit(training, early, (3, 3, 3))
    with pytest.raises(UpdateRejected, match="does not ask"):
        calibration.admit(closing.model_copy(update={"site": "west"}), answer, (3, 3, 3))


@pytest.mark.slow
def test_an_exported_file_carries_the_calibration(folder: Path, images: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from client.classification.exported import load_onnx

    out = tmp_path / "skin.onnx"
    assert main(["export", str(folder), "--format", "onnx", "--out", str(out)]) == 0
    assert load_onnx(out).label.calibration == kept_of(folder)
    by_torch, by_onnx = tmp_path / "torch.csv", tmp_path / "onnx.csv"
    options = ["--coverage", "0.8", *map(str, images), "--out"]
    assert main(["predict", "--study", str(folder), "--device", "cpu", *options, str(by_torch)]) == 0
    assert main(["predict", "--onnx", str(out), *options, str(by_onnx)]) == 0
    for left, right in zip(
        csv.reader(by_torch.read_text().splitlines()),
        csv.reader(by_onnx.read_text().splitlines()),
        strict=True,
    ):
        assert (left[2], left[-1]) == (right[2], right[-1])
        if left[0] != "file":
            np.testing.assert_allclose(np.array(left[3:6], float), np.array(right[3:6], float), atol=1e-3)
