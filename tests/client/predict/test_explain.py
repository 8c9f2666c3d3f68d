"""Heat maps point to the place that decides, for networks of every kind, and stay at the site."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from client import predict
from client.cli.main import main
from client.predict.explain import explainer, place
from client.predict.sheet import overlay
from common.errors import ConfigError

pytest.importorskip("captum")
CPU = torch.device("cpu")


class Bright(nn.Module):
    """Class 1 is whatever is bright: the mean of an 8 x 8 map of brightness."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 2, 4, stride=4, bias=False)
        self.turn = nn.Identity()
        self.head = nn.Linear(2, 3)
        self.last = last
        with torch.no_grad():
            self.map.weight.fill_(1 / 48)
            self.head.weight.copy_(torch.tensor([[0.0, 0], [1, 1], [0, 0]]))

    def forward_features(self, images):
        maps = self.map(images).relu()
        return self.turn(maps.permute(0, 2, 3, 1)) if self.last else maps

    def forward_head(self, maps, pre_logits=False):
        features = maps.mean(dim=(1, 2) if self.last else (2, 3))
        return features if pre_logits else self.head(features)

    def get_classifier(self):
        return self.head

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_heat_is_where_the_deciding_patch_is(make_run, last, corner):
    classifier = replace(predict.load(make_run(), "softmax", None, CPU), model=Bright(last=last), layer=None)
    size = classifier.preprocessing.stored_size
    square = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    rows, columns = (slice(half * at, half * at + half) for at in corner)
    square[rows, columns] = 255
    (heat,) = explainer(classifier).heat([square], [1])
    assert heat.shape == (32, 32)
    assert heat.max() == pytest.approx(1)
    quarters = {
        (a, b): heat[16 * a : 16 * a + 16, 16 * b : 16 * b + 16].sum() for a in (0, 1) for b in (0, 1)
    }
    assert max(quarters, key=quarters.__getitem__) == corner
    (other,) = explainer(classifier).heat([255 - square], [1])
    assert other[rows, columns].mean() < other.mean()


@pytest.mark.parametrize(
    ("encoder", "size", "model"),
    [
        ("test_convnext", 64, {}),
        ("test_efficientnet", 64, {}),
        ("test_vit", 64, {}),
        ("test_vit", 64, {"kind": "clip", "text": {"kind": "random", "width": 8}}),
        ("test_convnext", 64, {"kind": "clip", "text": {"kind": "random", "width": 8}}),
    ],
)
@pytest.mark.parametrize("title", ["softmax", "federated.lda"])
def test_networks_of_every_kind_have_heat_maps_with_more_than_one_value(
    make_run, encoder, size, model, title
):
    classifier = predict.load(make_run(encoder, size, **model), title, None, CPU)
    stored = classifier.preprocessing.stored_size
    squares = list(np.random.default_rng(0).integers(0, 256, (2, stored, stored, 3), np.uint8))
    found = explainer(classifier)
    heats = [heat for target in range(3) for heat in found.heat(squares, [target, target])]
    assert all(heat.shape == (size, size) and 0 <= heat.min() <= heat.max() <= 1 + 1e-6 for heat in heats)
    assert max(heat.std() for heat in heats) > 0.05


def test_a_network_without_places_is_refused():
    with pytest.raises(ConfigError, match="no layer that keeps places"):
        place(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)), 8)


def test_no_heat_leaves_the_image_as_it_is_and_full_heat_makes_it_red():
    square = np.full((2, 2, 3), 100, np.uint8)
    found = overlay(square, np.array([[0, 1], [0, 0]], np.float32))
    assert found[0, 0].tolist() == [100, 100, 100]
    assert found[0, 1].tolist() == [193, 40, 40]  # 0.4 * 100 + 0.6 * (255, 0, 0)


def test_the_command_writes_a_picture_per_line_and_a_sheet_for_its_owner_alone(
    make_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("common.log.start", lambda *_: None)
    folder, heat = tmp_path / "images", tmp_path / "heat"
    folder.mkdir()
    for name in ("a", "<b>"):
        Image.new("RGB", (40, 40), "red").save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("none")
    run = make_run()
    assert main(["predict", "--study", str(run), "--device", "cpu", "--explain", str(heat), str(folder)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2
    assert sorted(path.name for path in heat.iterdir()) == ["00001.png", "00002.png", "index.html"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (heat, *heat.iterdir()))
    page = (heat / "index.html").read_text()
    assert "&lt;b&gt;.png" in page
    assert "<b>.png" not in page
    with Image.open(heat / "00001.png") as picture:
        assert picture.size == (64, 32)
    capsys.readouterr()
    assert main(["predict", "--study", str(run), "--views", "2", "--explain", str(heat), str(folder)]) == 1
    assert "expected --study without them" in capsys.readouterr().err
