"""One study of a version of this repository, for `rounds.py`; run as a file, so that all else is of that version."""

import json
import os
import statistics
import sys
from pathlib import Path

ROUNDS = 8
IMAGES = 30
"""Images of a site."""


def study(encoder: str, num_sites: int, folder: Path) -> None:
    """Run it, and write what it cost."""
    from common.config import StudyConfig

    try:
        from client.cli.main import main as site
        from server.simulation.simulate import load_federation, run_study
        from server.storage.history import read_rounds
    except ImportError:  # 0.1.0
        from server.history import read_rounds  # type: ignore[import-not-found,no-redef]

        from client.cli import main as site  # type: ignore[attr-defined,no-redef]
        from server.simulation import load_federation, run_study  # type: ignore[attr-defined,no-redef]

    sites, images = folder / "sites", folder / "images"
    _draw(images, num_sites)
    site(["simulate", "--data", str(images), "--out", str(sites), "--threads", "1"])
    federation = load_federation(sites)
    wanted = StudyConfig.model_validate(
        {
            "name": "rounds",
            "classes": federation.classes,
            "sites": {"train": tuple(federation.sites)},
            "model": {"encoder": encoder, "image_size": 32},
            "rounds": ROUNDS,
            "local": {"steps": 1, "batch_size": 8},
        }
    )
    outcome = run_study(wanted, sites, federation, folder / "run")
    if not outcome.finished:
        raise SystemExit(outcome.reason)
    rounds = read_rounds(folder / "run")[1 : ROUNDS - 1]  # the first one decodes, the last ones score
    found = {
        "mib": rounds[0].sites[0].mib_down,
        "seconds": statistics.median(record.seconds for record in rounds),
        "own": statistics.median(
            max(row.train_s + row.evaluate_s for row in record.sites) for record in rounds
        ),
    }
    (folder / "result.json").write_text(json.dumps(found))


def _draw(images: Path, num_sites: int) -> None:
    """Images of noise in folders by site and class; seed 0."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for site in range(num_sites):
        for number in range(IMAGES):
            path = images / f"site{site:02}" / f"class{number % 3}" / f"{site}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)


if __name__ == "__main__":
    sys.path.insert(0, os.environ["PYTHONPATH"])
    study(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
