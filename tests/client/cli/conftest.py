"""A labelled data set of two sites, and a log that the tests keep."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _keep_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two sites, two classes, ten lesions of two images in each: 80 images."""
    folder = tmp_path / "data"
    folder.mkdir()
    draws = np.random.default_rng(0)
    lines = ["file,label,lesion_id,site"]
    for site in ("north", "south"):
        for label in ("mel", "nv"):
            for number in range(20):
                name = f"{site}-{label}-{number}.png"
                Image.fromarray(draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / name)
                lines.append(f"{name},{label},{site}-{label}-{number // 2},{site}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"
