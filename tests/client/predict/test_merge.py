"""The whole model of a run, for use outside."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from client.cli.main import main
from client.model import build, parameters
from client.predict import load
from client.predict.fold import linear_layer
from common.heads import FittedHead, Fourier, HeadForm, View
from common.settings import to_yaml
from common.weights import digest, save_file

CPU = torch.device("cpu")


def run_of(folder, study, change):
    """A finished run's folder; returns the model whose weights are in it."""
    (folder / "study.yaml").write_bytes(to_yaml(study.model_dump(mode="json")))
    model = build.of_study(study, None).model.eval()
    draws = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if change in name:
                parameter.normal_(std=0.1, generator=draws)
    arrays = parameters.shared_arrays(model, parameters.partition(model, study.model))
    save_file(folder / "weights.safetensors", arrays, {"study": study.name, "sha256": digest(arrays)})
    return model


@pytest.mark.slow
def test_a_lora_run_becomes_a_model_that_timm_loads(tmp_path, make_study):
    tuning = {"kind": "lora", "rank": 2, "layers": "all"}
    study = make_study(model={"encoder": "test_convnext", "image_size": 32, "tuning": tuning})
    trained = run_of(tmp_path, study, change="lora_B")
    out = tmp_path / "whole.safetensors"
    assert main(["merge", str(tmp_path), "--out", str(out)]) == 0
    plain = timm.create_model("test_convnext", num_classes=3).eval()
    plain.load_state_dict(load_file(out))
    images_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(plain(images_BCHW), trained(images_BCHW), atol=1e-5)


def test_weights_of_another_study_are_refused(tmp_path, make_study, capsys):
    run_of(tmp_path, make_study(), change="head")
    other = make_study(model={"encoder": "test_vit", "image_size": 32})
    (tmp_path / "study.yaml").write_bytes(to_yaml(other.model_dump(mode="json")))
    assert main(["merge", str(tmp_path), "--out", str(tmp_path / "whole.safetensors")]) == 1
    assert "damaged or not of this study" in capsys.readouterr().err
    assert not (tmp_path / "whole.safetensors").exists()


def test_a_head_and_its_view_are_one_linear_layer_by_hand():
    # ((f - 1) / 2) * 3 + 1 and ((f - 1) / 2) * -1: 1.5 f - 0.5 and -0.5 f + 0.5.
    view = View(np.array([1.0]), np.array([2.0]))
    head = FittedHead(
        HeadForm(title="f", form="linear"),
        view,
        {"weights": np.array([[3.0, -1.0]]), "bias": np.array([1.0, 0.0])},
    )
    weights_CF, bias_C = linear_layer(head)
    assert weights_CF.tolist() == [[1.5], [-0.5]]
    assert bias_C.tolist() == [-0.5, 0.5]
    projected = View(np.array([1.0, 0.0]), np.array([2.0, 1.0]), np.array([[1.0], [4.0]]))
    weights_CF, _ = linear_layer(FittedHead(head.form, projected, head.parameters))
    assert weights_CF.tolist() == [[1.5, 12.0], [-0.5, -4.0]]


@pytest.mark.parametrize(
    ("encoder", "model"),
    [
        ("test_convnext", {}),
        ("test_vit", {"tuning": {"kind": "lora", "rank": 2}}),
        ("test_convnext", {"tuning": {"kind": "adapter"}}),
    ],
)
def test_timm_alone_predicts_with_the_head_that_was_merged(make_run, tmp_path, encoder, model):
    run, out = make_run(encoder, **model), tmp_path / "whole.safetensors"
    assert main(["merge", str(run), "--head", "federated.lda", "--out", str(out)]) == 0
    options = {"img_size": 32} if encoder == "test_vit" else {}
    plain = timm.create_model(encoder, num_classes=3, **options).eval()
    plain.load_state_dict(load_file(out))
    classifier = load(run, "federated.lda", None, CPU)
    size = classifier.preprocessing.stored_size
    square = np.random.default_rng(1).integers(0, 256, (size, size, 3), np.uint8)
    from client.predict.image_classifier import Squares

    with torch.no_grad():
        found = plain(Squares([square], classifier.preprocessing).batch(torch.tensor([0]), None)).softmax(1)
    assert found.numpy() == pytest.approx(classifier.probabilities([square]), abs=1e-5)
    assert np.abs(found.numpy() - load(run, "softmax", None, CPU).probabilities([square])).max() > 1e-3


def test_merge_takes_the_head_that_the_study_ends_with(make_run, tmp_path, capsys):
    from common.config import StudyConfig
    from common.settings import load_settings

    run = make_run()
    study = load_settings(run / "study.yaml", StudyConfig, "study").model_dump(mode="json")
    study |= {"final_head": "federated_lda", "heads": None}
    (run / "study.yaml").write_bytes(to_yaml(study))
    written = {}
    for options in ([], ["--head", "federated.lda"], ["--head", "softmax"]):
        assert main(["merge", str(run), *options, "--out", str(tmp_path / "whole.safetensors")]) == 0
        written[" ".join(options)] = load_file(tmp_path / "whole.safetensors")["head.fc.weight"]
    assert torch.equal(written[""], written["--head federated.lda"])
    assert not torch.equal(written[""], written["--head softmax"])


@pytest.mark.parametrize(
    ("form", "fourier", "model", "reason"),
    [
        ("gaussian", None, {}, "not linear in the features"),
        ("linear", Fourier(seed=0, gamma=1.0, num_components=4), {}, "not linear in the features"),
        ("linear", None, {"kind": "clip", "text": {"kind": "random", "width": 8}}, "no linear classifier"),
    ],
)
def test_a_head_that_is_no_classifier_is_refused_with_what_to_do(make_run, form, fourier, model, reason):
    from client.predict.fold import put_into
    from common.errors import ConfigError

    network = load(make_run(**model), "softmax", None, CPU).model
    head = FittedHead(HeadForm(title="f", form=form), View(np.zeros(1), np.ones(1), None, fourier), {})
    with pytest.raises(ConfigError, match=f"{reason}.*Take `export`"):
        put_into(network, head, None)
    linear = FittedHead(HeadForm(title="f", form="linear"), View(np.zeros(1), np.ones(1)), {})
    with pytest.raises(ConfigError, match="stands on the module stem"):
        put_into(network, linear, "stem")
