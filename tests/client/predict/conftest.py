"""Finished runs of tiny networks whose weights were drawn, not trained."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from client.model import build, parameters
from common.config import StudyConfig
from common.heads import FittedHead, HeadForm, View
from common.settings import to_yaml
from common.weights import digest, save_file

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(make_study: Callable[..., StudyConfig], tmp_path: Path) -> MakeRun:
    """`make_run(encoder, tuning=..., kind=...)`: a run's folder with a federated head `federated.lda`."""

    def make(encoder: str = "test_convnext", size: int = 32, **model: object) -> Path:
        study = make_study(model={"encoder": encoder, "image_size": size} | model)
        folder = tmp_path / f"run-{encoder}-{len(list(tmp_path.iterdir()))}"
        (folder / "heads").mkdir(parents=True)
        (folder / "study.yaml").write_bytes(to_yaml(study.model_dump(mode="json")))
        network = build.of_study(study, None).model.eval()
        draws = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
        shared = parameters.shared_arrays(network, parameters.partition(network, study.model))
        save_file(folder / "weights.safetensors", shared, {"sha256": digest(shared)})
        _save_head(folder / "heads", network, study, digest(shared))
        return folder

    return make


def _save_head(folder: Path, network: torch.nn.Module, study: StudyConfig, weights: str) -> None:
    from client.heads.features import with_logits

    size = study.model.image_size
    width = with_logits(network, torch.zeros(1, 3, size, size))[0].shape[1]
    rng = np.random.default_rng(2)
    head = FittedHead(
        HeadForm(title="federated.lda", form="linear"),
        View(rng.normal(size=width), rng.uniform(0.5, 2, width)),
        {"weights": rng.normal(size=(width, 3)) / width, "bias": rng.normal(size=3)},
    )
    label = {
        "head": head.form.model_dump_json(),
        "classes": json.dumps(study.classes),
        "weights_sha256": weights,
    }
    save_file(folder / "federated.lda.safetensors", head.arrays(), label)
