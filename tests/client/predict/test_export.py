"""A finished run as one file: it gives torch's probabilities, or it is not there."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from client import predict
from client.classification.exported import KEY, Label
from client.cli.main import main
from client.predict import export as exporting
from client.predict.export import export
from common.errors import ConsiliumError
from common.weights import load_file
from tests.places import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draws.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def probabilities(text: str) -> np.ndarray:
    rows = list(csv.DictReader(io.StringIO(text)))
    return np.array([[float(value) for value in list(row.values())[3:]] for row in rows])


@pytest.mark.slow  # torch takes seconds to load its exporter
@pytest.mark.parametrize(
    ("encoder", "model"),
    [
        ("test_convnext", {"kind": "clip", "text": {"kind": "random", "width": 8}}),
        ("test_vit", {"tuning": {"kind": "lora", "rank": 2}}),
    ],
)
def test_an_onnx_file_predicts_without_torch_what_the_run_predicts(
    make_run, images, tmp_path, capsys, monkeypatch, encoder, model
):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("common.log.start", lambda *_: None)
    run, out = make_run(encoder, **model), tmp_path / "skin.onnx"
    arguments = ["export", str(run), "--format", "onnx", "--out", str(out), "--head", "federated.lda"]
    assert main([*arguments, "--check", str(images)]) == 0
    capsys.readouterr()
    assert (
        main(["predict", "--study", str(run), "--head", "federated.lda", "--device", "cpu", str(images)]) == 0
    )
    expected = probabilities(capsys.readouterr().out)
    # A process in which torch and what needs it cannot be imported.
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'torchvision', 'sklearn', 'open_clip'): sys.modules[name] = None\n"
        "from client.cli.main import main\n"
        f"raise SystemExit(main(['predict', '--onnx', {str(out)!r}, {str(images)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert probabilities(done.stdout) == pytest.approx(expected, abs=1e-4)


def test_a_network_that_torch_cannot_write_is_named_and_leaves_no_file(make_run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")

    def broken(*_args, **_settings):
        raise RuntimeError("pages of text")

    monkeypatch.setattr("torch.onnx.export", broken)
    classifier = predict.load(make_run(), "softmax", None, CPU)
    with pytest.raises(ConsiliumError, match=r"cannot write test_convnext as ONNX \(RuntimeError\)"):
        export(classifier, tmp_path / "skin.onnx", "onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_a_torchscript_file_has_the_label_and_the_probabilities(make_run, tmp_path):
    classifier = predict.load(make_run(), "federated.lda", None, CPU)
    size = classifier.preprocessing.stored_size
    given = [np.full((size, size, 3), value, np.uint8) for value in (0, 128, 255)]
    done = export(classifier, tmp_path / "skin.pt", "torchscript", squares=given)
    assert done.num_checked == 5 + 3
    assert done.difference <= 1e-6
    extra = {f"{KEY}.json": ""}
    with exporting._quietly():
        module = torch.jit.load(tmp_path / "skin.pt", _extra_files=extra)
    label = Label.model_validate_json(extra[f"{KEY}.json"])
    assert (label.classes, label.head) == (classifier.classes, "federated.lda")
    assert label.preprocessing.stored_size == size
    found = module(torch.from_numpy(np.stack(given))).numpy()
    assert found == pytest.approx(classifier.probabilities(given), abs=1e-6)


def test_a_safetensors_file_has_the_encoders_own_layers_the_head_and_the_label(make_run, tmp_path):
    run = make_run("test_vit", tuning={"kind": "lora", "rank": 2})
    classifier = predict.load(run, "federated.lda", None, CPU)
    export(classifier, tmp_path / "skin.safetensors", "safetensors")
    arrays, metadata = load_file(tmp_path / "skin.safetensors")
    assert not any("lora" in name for name in arrays)
    assert not any("head_on_features" in name for name in arrays)  # it is the classifier
    assert "head" not in metadata
    assert not np.array_equal(arrays["head.weight"], classifier.model.get_classifier().weight.detach())
    assert Label.model_validate_json(metadata[KEY]).weights_sha256 == classifier.weights_sha256


def test_a_head_that_cannot_be_the_classifier_stands_beside_the_layers(make_run, tmp_path):
    run = make_run("test_convnext", kind="clip", text={"kind": "random", "width": 8})
    export(predict.load(run, "federated.lda", None, CPU), tmp_path / "skin.safetensors", "safetensors")
    arrays, metadata = load_file(tmp_path / "skin.safetensors")
    assert arrays["head_on_features/weights"].shape[1] == 3
    assert json.loads(metadata["head"])["form"] == "linear"


def test_a_file_that_computes_something_else_is_not_kept(make_run, tmp_path, monkeypatch):
    classifier = predict.load(make_run(), "softmax", None, CPU)
    monkeypatch.setattr(
        exporting, "_to_torchscript", lambda *_: lambda squares: np.full((len(squares), 3), 1 / 3 + 0.01)
    )
    out = tmp_path / "skin.pt"
    out.write_bytes(b"before")
    with pytest.raises(ConsiliumError, match="differ from torch's by"):
        export(classifier, out, "torchscript")
    assert out.read_bytes() == b"before"
    assert not list(tmp_path.glob(".export-*"))


def test_a_sites_own_head_is_refused(make_run, tmp_path):
    from dataclasses import replace

    from client.predict.image_classifier import LocalHead

    classifier = replace(predict.load(make_run(), "softmax", None, CPU), head=LocalHead(None, 3))
    with pytest.raises(ConsiliumError, match="scikit-learn's and cannot be exported"):
        export(classifier, tmp_path / "skin.pt", "torchscript")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "both or neither"),
        (["--study", "a", "--onnx", "b"], "both or neither"),
        (["--onnx", "b", "--views", "2"], "--views has no meaning"),
        (["--onnx", "b", "--head", "softmax"], "--head has no meaning"),
    ],
)
def test_options_that_contradict_each_other_are_named(options, reason, capsys):
    assert main(["predict", "images", *options]) == 1
    assert reason in capsys.readouterr().err


def test_a_file_that_is_no_export_is_named(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    (tmp_path / "x.onnx").write_bytes(b"no")
    assert main(["predict", "images", "--onnx", str(tmp_path / "x.onnx")]) == 1
    assert "is not an ONNX model" in capsys.readouterr().err
