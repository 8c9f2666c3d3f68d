"""What a data manager gets from a finished study: a line of CSV an image, and a name for what is none."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import SegmentationStorage

from client.cli.main import main
from client.config import SiteConfig
from client.heads import worker
from client.trainer import Trainer
from common.config import StudyConfig
from common.weights import load_file, save_file
from server.conduct import conduct
from server.config import ServerConfig
from server.rounds.sites import InProcessSites
from tests.client.data.readers.test_dicom import dicom
from tests.places import ROOT

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
DICOMS = Path(__file__).parents[4] / "shared" / "data" / "dicom_nifti_samples.tar"


@pytest.fixture
def run(make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished study of one site, with a head of either kind."""
    monkeypatch.setattr("common.log.start", lambda *_: None)
    monkeypatch.setattr(worker, "_work", lambda folder, _: worker.main(folder))
    study = make_study(
        sites={"train": ("north",)},
        rounds=1,
        heads={"federated": [{"kind": "lda"}], "local": [{"kind": "naive_bayes"}]},
    )
    (tmp_path / "run").mkdir()
    settings = tmp_path / "run/study.yaml"
    settings.write_text(json.dumps(study.model_dump(mode="json")))
    config = ServerConfig(study=settings, run_dir=tmp_path / "run", node_ids={"north": 1})
    conduct(config, InProcessSites({"north": Trainer(make_site("north")).answer}))
    return tmp_path / "run"


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_image_of_a_folder_gets_a_line_and_what_is_none_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "north-images"
    (images / "red" / "notes.txt").write_text("not an image")
    missing = tmp_path / "gone.png"
    arguments = ["predict", "--study", str(run), "--device", "cpu", str(images), str(missing)]
    assert main([*arguments, "--head", "federated.lda"]) == 1
    told = capsys.readouterr()
    assert "notes.txt cannot be decoded" in told.err
    assert "gone.png cannot be read (No such file or directory)" in told.err
    found = lines(told.out)
    assert len(found) == 30  # 3 classes of 10 images
    assert all(
        sum(float(line[name]) for name in ("dark", "pale", "red")) == pytest.approx(1, abs=1e-5)
        for line in found
    )
    right = sum(Path(line["file"]).parent.name == line["predicted"] for line in found)
    assert right >= 25  # three plain colours
    (images / "red" / "notes.txt").unlink()
    out = tmp_path / "softmax.csv"
    assert main([*arguments[:-1], "--out", str(out)]) == 0
    assert len(lines(out.read_text())) == 30


def test_names_of_any_encoding_links_and_hidden_files_do_not_stop_a_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = next((tmp_path / "north-images" / "pale").glob("*.png"))
    folder, elsewhere = tmp_path / "scans", tmp_path / "elsewhere"
    for home in (folder, elsewhere):
        home.mkdir()
    shutil.copy(source, folder / os.fsdecode(b"f\xfcnf.png"))
    shutil.copy(source, elsewhere / "b.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / ".DS_Store").touch()
    out = tmp_path / "classes.csv"
    assert main(["predict", "--study", str(run), "--device", "cpu", str(folder), "--out", str(out)]) == 0
    names = [line["file"] for line in lines(out.read_text(errors="surrogateescape"))]
    assert names == [str(folder / os.fsdecode(b"f\xfcnf.png")), str(folder / "linked" / "b.png")]
    assert ".DS_Store is one of the files of the operating system" in capsys.readouterr().err


def test_a_local_head_is_applied_from_the_sites_own_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own,) = (tmp_path / "north-state").glob("tiny-*")
    image = next((tmp_path / "north-images" / "pale").glob("*.png"))
    code = main(
        ["predict", "--study", str(own), "--head", "local.naive_bayes", "--device", "cpu", str(image)]
    )
    assert code == 0
    assert lines(capsys.readouterr().out)[0]["predicted"] == "pale"


def test_a_folder_without_a_finished_study_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(folder: Path) -> str:
        assert main(["predict", "--study", str(folder), "--device", "cpu", str(tmp_path)]) == 1
        return capsys.readouterr().err

    assert "holds no finished study: it is not a folder" in said(tmp_path / "typo")
    assert "it has no study.yaml and no weights.safetensors" in said(tmp_path)
    (tmp_path / "study.yaml").touch()
    assert "it has no weights.safetensors, which a study writes when it finishes" in said(tmp_path)


def test_a_head_of_other_weights_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own,) = (tmp_path / "north-state").glob("tiny-*")
    for folder in (run, own):
        arrays, about = load_file(folder / "weights.safetensors")
        other = {name: np.asarray(array + 1e-3, array.dtype) for name, array in arrays.items()}
        from common.weights import digest

        save_file(folder / "weights.safetensors", other, {**about, "sha256": digest(other)})
    for folder, head in ((run, "federated.lda"), (own, "local.naive_bayes")):
        assert main(["predict", "--study", str(folder), "--head", head, "--device", "cpu", str(run)]) == 1
        assert f"head {head} was made of the weights" in capsys.readouterr().err
    assert main(["predict", "--study", str(run), "--head", "federated.svm", "--device", "cpu", str(run)]) == 1
    assert "holds no head 'federated.svm'; it holds federated.lda" in capsys.readouterr().err


@pytest.mark.skipif(not DICOMS.exists(), reason="the sample DICOM files are not here")
def test_every_frame_of_a_dicom_gets_a_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.unpack_archive(DICOMS, tmp_path / "dicom")
    files = sorted((tmp_path / "dicom").rglob("*.dcm"))
    assert main(["predict", "--study", str(run), "--device", "cpu", *map(str, files)]) == 1  # two are broken
    told = capsys.readouterr()
    found = lines(told.out)
    assert {Path(line["file"]).suffix for line in found} == {".dcm"}
    assert any(int(line["frame"]) > 1 for line in found)
    assert "left out: " in told.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirect", "code", "text"),
    [
        ("| true", 141, ""),
        (">&-", 1, "ConfigError: standard output is closed; name a file with --out FILE.csv\n"),
        (
            ">/dev/full",
            1,
            "nothing more could be written: No space left on device; make room, or write elsewhere\n",
        ),
    ],
)
def test_an_output_that_takes_no_more_ends_it_without_a_traceback(
    run: Path, tmp_path: Path, redirect: str, code: int, text: str
) -> None:
    images = [str(tmp_path / "north-images")]
    command = [sys.executable, "-m", "client.cli", "predict", "--study", str(run), "--device", "cpu", *images]
    script = f'{{ "$@"; echo "code $?" >&2; }} {redirect}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command], cwd=ROOT, capture_output=True, text=True, timeout=240,
        check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stderr == f"{text}code {code}\n"


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_mask_among_dicom_files_is_left_out_by_its_kind_and_not_classified(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dicom(tmp_path / "dicom" / "image.dcm")
    dicom(tmp_path / "dicom" / "mask.dcm", SOPClassUID=SegmentationStorage, Modality="SEG")
    assert main(["predict", "--study", str(run), "--device", "cpu", str(tmp_path / "dicom")]) == 1
    told = capsys.readouterr()
    assert [Path(line["file"]).name for line in lines(told.out)] == ["image.dcm"]
    assert "mask.dcm is a segmentation and no image" in told.err


def test_views_give_the_mean_over_an_image_and_its_mirror_image(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    for name, shown in (("a", pixels), ("b", pixels[:, ::-1])):
        Image.fromarray(np.ascontiguousarray(shown)).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert main(["predict", "--study", str(run), *files]) == 0
    one, other = lines(capsys.readouterr().out)
    assert main(["predict", "--study", str(run), "--views", "2", files[0]]) == 0
    (both,) = lines(capsys.readouterr().out)
    for name in ("dark", "pale", "red"):
        mean = (float(one[name]) + float(other[name])) / 2
        assert float(both[name]) == pytest.approx(mean, abs=2e-6)


def test_a_network_that_has_nothing_to_adapt_and_views_that_do_not_exist_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = str(tmp_path / "north-images")
    assert main(["predict", "--study", str(run), "--adapt-to", images, images]) == 1
    assert "no batch normalisation" in capsys.readouterr().err
    assert main(["predict", "--study", str(run), "--views", "3", images]) == 1
    assert "found 3 views of an image" in capsys.readouterr().err
