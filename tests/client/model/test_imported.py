"""Weights files of other libraries: read safely, renamed, and compared with the network that they are of."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models

from client.model.build import build
from client.model.encoders import architecture
from client.model.imported import convert
from common.config import ClassifierConfig, FileWeights
from common.errors import SiteDataError


def drawn(network: torch.nn.Module) -> dict[str, Tensor]:
    """The network's tensors, all of them drawn, so that no scale hides a layer that stands in the wrong place."""
    draws = torch.Generator().manual_seed(0)
    return {
        name: value + 0.1 * torch.rand(value.shape, generator=draws) if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }


def test_a_file_of_torchvision_gives_the_same_as_there(tmp_path: Path) -> None:
    """Swin has tensors in another order there: a merged patch is projected before it is normed, by the names."""
    encoder = "swin_t"
    network = models.get_model("swin_t", weights=None, num_classes=5)
    tensors = drawn(network)
    torch.save(tensors, tmp_path / "theirs.pth")
    made = convert(tmp_path / "theirs.pth", encoder, tmp_path / "ours.safetensors")
    assert "under timm's names" in made.how
    weights = FileWeights(name="ours.safetensors", sha256=made.sha256)
    built = build(ClassifierConfig(encoder=encoder, weights=weights), 5, 0, tmp_path)
    network.load_state_dict(tensors)
    noise = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network.eval()(noise)
        torch.testing.assert_close(built.model.eval()(noise), expected, rtol=1e-3, atol=1e-3)
    assert built.report.missing == ()
    assert not built.report.reshaped_head


def test_wrapped_names_of_timm_stay(tmp_path: Path) -> None:
    tensors = architecture(ClassifierConfig(encoder="test_vit"), 4).state_dict()
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in tensors.items()}}
    torch.save(wrapped, tmp_path / "timm.pth")
    made = convert(tmp_path / "timm.pth", "test_vit", tmp_path / "ours.safetensors")
    assert made.how == "names of timm, kept"
    assert load_file(made.path).keys() == {
        name for name, value in tensors.items() if value.is_floating_point()
    }
    assert f"sha256: {made.sha256}" in made.describe()


def test_names_of_open_clip_stay(tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.ones(2), "logit_scale": torch.tensor(1.0)}, tmp_path / "clip.bin")
    made = convert(tmp_path / "clip.bin", "ViT-B-32", tmp_path / "ours.safetensors")
    assert load_file(made.path).keys() == {"visual.proj", "logit_scale"}


class Runs:
    """What a file of pickles may do to whoever reads it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_nothing_in_a_file_of_pickles_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Runs()}, tmp_path / "bad.pth")
    with pytest.raises(SiteDataError, match="holds more than tensors"):
        convert(tmp_path / "bad.pth", "test_vit", tmp_path / "ours.safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "encoder", "said"),
    [
        ({"some.weight": torch.ones(3, 3)}, "test_vit", "holds the weights of another model than test_vit"),
        (
            {"some.weight": torch.ones(3, 3)},
            "maxvit_t",
            "torchvision builds maxvit_t from other tensors than timm",
        ),
        ({"epoch": 3}, "test_vit", "holds no named tensors"),
    ],
)
def test_files_that_cannot_be_taken_over_say_why(
    content: object, encoder: str, said: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(SiteDataError, match=said):
        convert(tmp_path / "file.pth", encoder, tmp_path / "ours.safetensors")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(SiteDataError):
        convert(tmp_path / "text.pth", encoder, tmp_path / "ours.safetensors")
