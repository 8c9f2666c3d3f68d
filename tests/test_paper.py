"""The paper's experiments from data sets in their real layouts to the table, with tiny networks on generated images."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

from client.cli.main import main as site_command
from client.heads import worker
from common.config import ClassifierConfig, ClipConfig, FileWeights
from common.errors import ConfigError
from common.weights import digest, load_file
from consilium_fl import paper
from server.cli.main import main as server_command
from server.paper import experiment, prepare
from server.paper.experiment import Size
from server.simulation import site_command as commands
from server.simulation.axes import merged
from server.simulation.grid import plan

HAM = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
ISIC = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
SOURCES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets as they are published, with images of noise around a grey of their class."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def picture(path: Path, grey: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(grey, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)

    def ham10000(home: Path) -> None:
        rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
        for number in range(4 * 7 * 5):
            label, source = number % 7, number // 35
            rows.append(f"HAM_{number},ISIC_{number:07},{HAM[label]},histo,50.0,male,back,{SOURCES[source]}")
            part = home / f"HAM10000_images_part_{1 + number % 2}"
            picture(part / f"ISIC_{number:07}.jpg", 30 * label + 20)
        (home / "HAM10000_metadata.csv").write_text("\n".join(rows))

    def isic2018(side: str, first: int) -> None:
        home = folder / "isic" / f"ISIC2018_Task3_{side}_GroundTruth"
        home.mkdir(parents=True)
        rows = [",".join(["image", *ISIC])]
        for number in range(14):
            label = number % 7
            marks = ["1.0" if place == label else "0.0" for place in range(7)]
            rows.append(",".join([f"ISIC_{first + number:07}", *marks]))
            picture(
                home.parent / f"ISIC2018_Task3_{side}_Input" / f"ISIC_{first + number:07}.jpg", 30 * label
            )
        (home / f"ISIC2018_Task3_{side}_GroundTruth.csv").write_text("\n".join(rows))

    def brats2019(home: Path) -> None:
        for number in range(20):
            grade = ("HGG", "LGG")[number % 2]
            subject = home / grade / f"BraTS19_CBICA_{number:03}_1"
            subject.mkdir(parents=True)
            for modality in ("t1", "t1ce", "t2", "flair", "seg"):
                values = np.zeros((16, 16, 8), np.int16)
                values[4:12, 4:12, 1:7] = rng.integers(50, 90 + 60 * (number % 2), (8, 8, 6))
                if modality == "seg":
                    values = np.zeros_like(values)
                    values[6:9, 6:9, 2:5] = 4
                image = nibabel.Nifti1Image(values, np.diag([-1.0, -1, 1, 1]))
                nibabel.save(image, subject / f"{subject.name}_{modality}.nii.gz")

    def brain_mri(home: Path) -> None:
        for side, each in (("Training", 8), ("Testing", 3)):
            for label, name in enumerate(("glioma", "meningioma", "notumor", "pituitary")):
                for number in range(each):
                    picture(home / side / name / f"{side[:2]}-{name}-{number}.jpg", 50 * label + 20)

    ham10000(folder / "ham")
    isic2018("Validation", 30_000)
    isic2018("Test", 40_000)
    brats2019(folder / "MICCAI_BraTS_2019_Data_Training")
    brain_mri(folder / "brain")
    return folder


@pytest.fixture(autouse=True)
def _sites_commands_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of their own for each would spend seconds on its imports."""

    def call(arguments: list[str]) -> None:
        assert site_command(arguments) == 0

    monkeypatch.setattr(commands, "call_site", call)
    monkeypatch.setattr(worker, "_work", lambda folder, _: worker.main(folder))


Tiny = Callable[..., Path]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """`tiny("federated-skin")`: a file of the experiment with one round, 32 pixels and a network for tests."""

    def tiny(name: str, **small: Any) -> Path:
        values = experiment.load(name).model_dump(mode="json", exclude_unset=True)
        study = values["small"]["study"]
        values["small"]["study"] = study | {
            "rounds": 1,
            "model": study["model"] | {"image_size": 32},
            "sites": {"evaluate_every": 1},
        }
        variants = values["small"].get("variants", {})
        if "classifier" in variants:
            variants["classifier"] = {"model": {"kind": "classifier", "image_size": 32}}
        axes = {"model.encoder": ["test_efficientnet"]}
        if "local.optimizer" in values["grid"]["axes"]:
            axes["local.optimizer"] = ["adamw"]
        values["small"]["axes"] = axes
        values["small"] |= small
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return tiny


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


ROWS = {
    "clip-ham10000": ["clip-test_efficientnet-adamw", "classifier-test_efficientnet-adamw"],
    "clip-brats2019": ["clip-test_efficientnet-adamw", "classifier-test_efficientnet-adamw"],
    "clip-brain-mri": ["clip-test_efficientnet-adamw", "classifier-test_efficientnet-adamw"],
    "optimizers-ham10000": ["test_efficientnet-adamw"],
    "optimizers-brats2019": ["test_efficientnet-adamw"],
    "federated-skin": ["test_efficientnet-fedavg-adamw", "test_efficientnet-fedprox-adamw"],
    "heads-isic2018-unseen": ["test_efficientnet"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_an_experiment_ends_with_a_table_a_picture_and_latex(
    name: str, data: Path, tiny: Tiny, tmp_path: Path
) -> None:
    done = paper.run(str(tiny(name)), data, runs=tmp_path, size="small", random_weights=True)
    assert done is not None
    folder = tmp_path / f"{name}-small"
    assert [row["model"] for row in table(folder)] == ROWS[name]
    for row in table(folder):
        assert 0 <= float(row["ACC"]) <= 100
        assert row["ACC half interval"] == ""  # one seed
        assert row["remark"] == "started from random weights"
    text = done.table.read_text()
    assert "**Smaller than in the paper.**" in text
    assert ("## Heads on the features" in text) == (name == "heads-isic2018-unseen")
    if name == "heads-isic2018-unseen":
        lines = [line for line in text.splitlines() if "| isic\\_test |" in line]
        # The softmax, eight heads of scikit-learn's that travelled from ham10000, six from sums and gradients.
        assert len(lines) == 15
        assert all(len(line.split("|")) == 16 for line in lines)
        assert {cell.strip() for cell in lines[0].split("|")} >= {"softmax", "14"}
        travelled = [line.split("|") for line in lines if "local." in line]
        assert len(travelled) == 8
        assert not [cells for cells in travelled if cells[5].strip() == "-"]
    assert "\\toprule" in (folder / "results.tex").read_text()
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")


def test_what_has_finished_is_kept_and_two_seeds_give_an_interval(
    data: Path, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = str(tiny("optimizers-brats2019", seeds=[0, 1]))
    for _ in range(2):
        paper.run(file, data, runs=tmp_path, size="small", random_weights=True)
    (row,) = table(tmp_path / "optimizers-brats2019-small")
    assert row["seeds"] == "0 1"
    assert float(row["ACC half interval"]) >= 0
    said = capfd.readouterr().err
    assert "sites are kept" in said.replace(f"in {tmp_path}/optimizers-brats2019-small/sites ", "")
    assert said.count("has finished before; it is kept") == 2


def test_two_runs_at_a_time_end_with_the_results_of_one_after_the_other(
    data: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(
        "OMP_NUM_THREADS", "1"
    )  # as in this process: on a CPU the number can change the last bits
    command = [
        "paper",
        str(tiny("optimizers-brats2019", seeds=[0, 1])),
        "--data",
        str(data),
        "--size",
        "small",
    ]
    command.append("--random-weights")
    assert server_command([*command, "--runs", str(tmp_path / "one")]) == 0
    capfd.readouterr()
    assert server_command([*command, "--runs", str(tmp_path / "side"), "--jobs", "2"]) == 0
    said = capfd.readouterr().err
    assert "optimizer steps together, 2 runs at a time" in said
    assert "(2 of 2 runs ended)" in said
    one, side = (tmp_path / name / "optimizers-brats2019-small" for name in ("one", "side"))
    assert (side / "results.csv").read_text() == (one / "results.csv").read_text()
    for seed in (0, 1):
        run = f"studies/test_efficientnet-adamw-seed{seed}"
        assert (side / f"{run}.log").exists()  # a process of its own
        assert digest(load_file(side / run / "weights.safetensors")[0]) == digest(
            load_file(one / run / "weights.safetensors")[0]
        )


def test_a_run_that_fails_is_a_row_with_the_reason_and_the_others_are_run(
    data: Path, tiny: Tiny, tmp_path: Path
) -> None:
    file = tiny("optimizers-brats2019")
    values = yaml.safe_load(file.read_text())
    values["small"]["axes"]["local.optimizer"] = {
        "adamw": {"kind": "adamw"},
        "wild": {"kind": "sgd", "lr": 1e30},
    }
    file.write_text(yaml.safe_dump(values))
    done = paper.run(str(file), data, runs=tmp_path, size="small", random_weights=True)
    assert done is not None
    good, bad = table(tmp_path / "optimizers-brats2019-small")
    assert good["ACC"] != ""
    assert bad["ACC"] == ""
    assert bad["remark"].startswith("seed 0: round 1 has 0 usable answers")
    assert "training diverged" in bad["remark"]


def test_sites_of_other_data_are_not_mixed_with_earlier_runs(data: Path, tiny: Tiny, tmp_path: Path) -> None:
    file = str(tiny("optimizers-brats2019"))
    paper.run(file, data, runs=tmp_path, size="small", random_weights=True, plan_only=True)
    other = tmp_path / "moved"
    other.symlink_to(data)
    with pytest.raises(ConfigError, match="were made from other data or weights"):
        paper.run(file, other, runs=tmp_path, size="small", random_weights=True)


def test_a_class_that_no_site_has_ends_the_experiment_once_before_the_first_run(
    data: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """Another program's table of HAM10000 without a lesion of one class."""
    other = tmp_path / "other"
    (other / "ham").mkdir(parents=True)
    for part in ("HAM10000_images_part_1", "HAM10000_images_part_2"):
        (other / "ham" / part).symlink_to(data / "ham" / part)
    table = (data / "ham" / "HAM10000_metadata.csv").read_text().splitlines()
    kept = [line for line in table if ",df," not in line]
    (other / "ham" / "HAM10000_metadata.csv").write_text("\n".join(kept))
    for _ in range(2):  # a second time, too: nothing is kept
        with pytest.raises(ConfigError, match=r"no site has images of df \(rosendahl, .*nothing was run"):
            paper.run(
                str(tiny("federated-skin")), other, runs=tmp_path, size="small", random_weights=True,
                plan_only=True,
            )  # fmt: skip


def test_an_encoder_that_does_not_exist_is_named_before_anything_is_prepared(
    data: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(arguments: list[str]) -> None:
        raise ConfigError(f"failed: {' '.join(arguments)}")

    monkeypatch.setattr(commands, "call_site", call)
    file = tiny("federated-skin")
    values = yaml.safe_load(file.read_text())
    values["small"]["axes"]["model.encoder"] = ["nosuchnet", "test_vit2"]
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        paper.run(str(file), data, runs=tmp_path, size="small", plan_only=True)
    assert str(caught.value) == (
        "federated-skin has encoders that no site could build; nothing was run\n"
        "failed: check-encoders nosuchnet:32 test_vit2:32 --library timm"
    )
    assert not (tmp_path / "federated-skin-small").exists()


def test_a_plan_says_what_would_be_run_and_runs_nothing(
    data: Path, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tiny("federated-skin")
    assert (
        paper.run(str(file), data, runs=tmp_path, size="small", random_weights=True, plan_only=True) is None
    )
    # 140 images in four sites of 35, two batches of 32 each, FedAvg and FedProx
    told = [line.strip() for line in capfd.readouterr().err.splitlines()]
    assert "2 runs, 2 rounds and about 16 optimizer steps together" in " ".join(told)
    assert told[-3].endswith("2 rows, by the names that --only takes:")
    assert told[-2:] == ["test_efficientnet-fedavg-adamw", "test_efficientnet-fedprox-adamw"]
    assert not (tmp_path / "federated-skin-small" / "studies").exists()


def test_the_plan_of_some_rows_counts_these_alone(
    data: Path, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, row = str(tiny("federated-skin")), "test_efficientnet-fedavg-adamw"
    settings: Any = {"runs": tmp_path, "size": "small", "random_weights": True, "plan_only": True}
    paper.run(file, data, only=[row], **settings)
    assert "1 run, 1 round and about 8 optimizer steps together" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="--only: federated-skin has no variant wrong; it has "):
        paper.run(file, data, only=["wrong"], **settings)


def test_encoders_without_weights_are_named_before_anything_is_prepared(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "mobilenetv2_100.timm.safetensors").touch()
    with pytest.raises(ConfigError, match=r"no weights for tf_efficientnet_lite0 in .*--random-weights"):
        paper.run("federated-skin", data, runs=tmp_path, size="small", weights=weights)
    assert not (tmp_path / "federated-skin-small").exists()


def test_every_study_of_an_encoder_starts_from_its_file(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("mobilenetv2_100.timm.safetensors", "tf_efficientnet_lite0.safetensors"):
        (weights / name).write_bytes(b"abc")
    planned = plan(experiment.load("federated-skin").grid_of("small"), "grid")
    files = prepare.first_weights(planned.studies.values(), weights, random=False)
    for study in prepare.started_from(planned, files).studies.values():
        start = study.model.weights
        assert isinstance(start, FileWeights)
        assert start.name.startswith(study.model.encoder)
        assert start.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc"
        assert study.model.image_size == 64


def test_weights_that_were_fetched_are_found_under_the_hubs_name(tmp_path: Path) -> None:
    (tmp_path / "lite0.in1k.safetensors").write_bytes(b"abc")
    (tmp_path / "lite0.in1k.safetensors.origin.json").write_text('{"encoder": "tf_efficientnet_lite0"}')
    (tmp_path / "other.origin.json").write_text("not JSON")
    planned = plan(experiment.load("federated-skin").grid_of("small"), "grid")
    files = prepare.first_weights(planned.studies.values(), tmp_path, random=True)
    assert {encoder: start.name for encoder, start in files.items()} == {
        "tf_efficientnet_lite0": "lite0.in1k.safetensors"
    }
    begun = prepare.started_from(planned, files).studies.values()
    assert {study.model.encoder for study in begun if prepare.starts_from_random(study)} == {
        "mobilenetv2_100"
    }


@pytest.mark.parametrize("name", ["clip-brain-mri", "clip-brats2019", "clip-ham10000"])
@pytest.mark.parametrize("size", ["paper", "small"])
def test_classifiers_beside_clip_start_from_the_same_files(name: str, size: Size, tmp_path: Path) -> None:
    planned = plan(experiment.load(name).grid_of(size), "grid")
    for encoder in {study.model.encoder for study in planned.studies.values()}:
        (tmp_path / f"{encoder}.safetensors").write_bytes(encoder.encode())
    files = prepare.first_weights(planned.studies.values(), tmp_path, random=False)
    begun = prepare.started_from(planned, files).studies.values()
    assert {type(study.model) for study in begun} == {ClipConfig, ClassifierConfig}
    for study in begun:
        assert study.model.weights == files[study.model.encoder]


def test_a_study_that_names_its_first_weights_keeps_them(tmp_path: Path) -> None:
    grid = experiment.load("federated-skin").grid_of("small")
    hub = {"kind": "hub", "tag": None}
    grid = grid.model_copy(update={"study": merged(grid.study, {"model": {"weights": hub}})})
    planned = plan(grid, "grid")
    assert prepare.first_weights(planned.studies.values(), tmp_path, random=False) == {}
    assert prepare.started_from(planned, {}) == planned


def test_the_text_tower_is_asked_once_and_again_when_the_grid_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def embed(arguments: list[str]) -> None:
        asked.append(arguments)
        Path(arguments[3]).write_bytes(Path(arguments[1]).read_bytes())

    monkeypatch.setattr(commands, "call_site", embed)
    grid, file = experiment.load("clip-brain-mri").grid_of("paper"), tmp_path / "grid.yaml"
    assert prepare.with_vectors(grid, file, None) == prepare.with_vectors(grid, file, None)
    assert len(asked) == 1
    other = grid.model_copy(update={"study": merged(grid.study, {"class_names": {"notumor": "healthy"}})})
    whole = prepare.with_vectors(other, file, None)
    assert len(asked) == 2
    assert "healthy" in whole.read_text()


def test_two_files_of_an_encoder_are_not_chosen_from(tmp_path: Path) -> None:
    for name in ("mobilenetv2_100.a.safetensors", "mobilenetv2_100.b.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(
        ConfigError, match=r"several files for mobilenetv2_100: .*call it mobilenetv2_100.safetensors"
    ):
        prepare.first_weights(
            plan(experiment.load("federated-skin").grid_of("small"), "grid").studies.values(),
            tmp_path,
            random=True,
        )
