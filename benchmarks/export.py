"""Export of the encoders of the paper: distance of a written file from torch, its size, and the seconds it takes.

Weights are drawn, not trained. `python -m benchmarks export NAME...` takes some encoders, `clip:NAME` one with CLIP's
head; without names, all twelve. `IMAGES` in the environment names a folder of images to compare on besides the
generated ones. Prints a table.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from client import predict
from client.model import build, parameters
from client.model.encoders import PAPER_ENCODERS
from client.predict.export import Format, export
from common.config import StudyConfig
from common.errors import ConsiliumError
from common.settings import to_yaml
from common.weights import digest, save_file
from server.report.text import markdown_table

_MOST_IMAGES = 8
_FORMATS: tuple[Format, ...] = ("onnx", "torchscript")


def main() -> None:
    """Print a row per encoder and format."""
    folder = os.environ.get("IMAGES")
    images = [] if folder is None else sorted(Path(folder).rglob("*.jpg"))[:_MOST_IMAGES]
    rows = [row for name in sys.argv[2:] or PAPER_ENCODERS for row in _rows(name, images)]
    print(markdown_table(["encoder", "format", "largest difference", "images", "MiB", "seconds"], rows))


def _rows(name: str, images: list[Path]) -> list[list[str]]:
    clip = {"kind": "clip", "text": {"kind": "random", "width": 64}} if name.startswith("clip:") else {}
    study = StudyConfig.model_validate(
        {
            "name": "export",
            "classes": ["a", "b", "c"],
            "sites": {"train": ["north"], "required": 1},
            "rounds": 1,
            "model": {"encoder": name.removeprefix("clip:"), **clip},
        }
    )
    rows = []
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        _write_run(study, folder)
        classifier = predict.load(folder, "softmax", None, torch.device("cpu"))
        squares = predict.squares(classifier, images)
        for wanted in _FORMATS:
            start, out = time.monotonic(), folder / f"model.{wanted}"
            try:
                done = export(classifier, out, wanted, squares=squares)
            except ConsiliumError as error:
                rows.append([name, wanted, str(error), "-", "-", "-"])
                continue
            mib, seconds = out.stat().st_size / 2**20, time.monotonic() - start
            rows.append(
                [
                    name,
                    wanted,
                    f"{done.difference:.1e}",
                    str(done.num_checked),
                    f"{mib:.0f}",
                    f"{seconds:.0f}",
                ]
            )
    return rows


def _write_run(study: StudyConfig, folder: Path) -> None:
    (folder / "study.yaml").write_bytes(to_yaml(study.model_dump(mode="json")))
    network = build.of_study(study, None).model.eval()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.get_classifier().parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws))
    shared = parameters.shared_arrays(network, parameters.partition(network, study.model))
    save_file(folder / "weights.safetensors", shared, {"sha256": digest(shared)})
