"""The whole model of a run, for use outside."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from client.cli.main import main
from client.model import build, parameters
from common.settings import to_yaml
from common.weights import save_file


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
    save_file(folder / "weights.safetensors", arrays, {"study": study.name})
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
    assert "are of two studies" in capsys.readouterr().err
    assert not (tmp_path / "whole.safetensors").exists()
