"""How much better a model looks when its test was split by image: HAM10000, by image and by lesion.

A quarter of HAM10000's lesions have several images. Split by image, many a test image has a twin
in training, and a test rewards remembering it. Same frozen features, same classifier, same seeds;
only the split differs. Writes docs/results/split-gap.md. Needs the images and the weights:
`HAM10000=DIR WEIGHTS=DIR python -m benchmarks split_gap`, DIR with labels.csv (file, label,
lesion_id) and with mobilenetv2_100.timm.safetensors.
"""

import logging
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from benchmarks._page import RESULTS, write_page
from client.config import CacheConfig, Columns, CsvData
from client.data.manifest import Manifest
from client.data.readers import read as readers
from client.data.splitting.stratify import deal
from client.data.store import ImageStore
from client.model.build import build
from common.config import ClassifierConfig
from server.report.text import markdown_table

PAGE = RESULTS / "split-gap.md"
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
MODEL = {
    "encoder": "mobilenetv2_100",
    "image_size": 128,
    "weights": {
        "kind": "file",
        "name": "mobilenetv2_100.timm.safetensors",
        "sha256": "a3ecb9791104a396ba30131ec1394534364be0c499ab598712ac5187e115084c",
    },
}
SEEDS = (0, 1, 2, 3, 4)
T_4 = 2.776
"""97.5 % of Student's t with 4 degrees of freedom: five seeds."""

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """Balanced accuracy of one classifier, one figure a seed."""

    classifier: str
    by_image: list[float]
    by_lesion: list[float]

    @property
    def gaps(self) -> list[float]:
        """By image minus by lesion, seed by seed."""
        return [image - lesion for image, lesion in zip(self.by_image, self.by_lesion, strict=True)]


def classifiers() -> dict[str, Any]:
    """One that cannot remember single images, and one that does nothing else."""
    return {
        "logistic regression": make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced")
        ),
        "nearest neighbour": make_pipeline(Normalizer(), KNeighborsClassifier(1)),
    }


def read(ham: Path) -> Manifest:
    """The rows of HAM10000, with lesions."""
    columns = Columns(image="file", label="label", lesion="lesion_id")
    return readers.read(CsvData(labels=ham / "labels.csv", columns=columns), CLASSES)


def features(manifest: Manifest, weights: Path) -> Features:
    """Pooled features of the frozen encoder, (N, F); images are cut to their centre, not augmented."""
    built = build(ClassifierConfig.model_validate(MODEL), len(CLASSES), 0, weights)
    rows = tuple(row.__class__(**{**vars(row), "split": "test"}) for row in manifest.rows)
    store = ImageStore.build(
        Manifest(rows, CLASSES), built.preprocessing, CacheConfig(memory_mib=4096), Path(), num_threads=1
    )
    images = store.images("test")
    model: Any = built.model.eval()
    found = []
    with torch.inference_mode():
        for places_B in torch.arange(len(rows)).split(64):
            batch_BCSS = images.batch(places_B, None)
            found.append(model.forward_head(model.forward_features(batch_BCSS), pre_logits=True).numpy())
    return np.concatenate(found)


def measure(manifest: Manifest, features_NF: Features) -> list[Row]:
    """Every classifier on every split."""
    labels_N = np.array([row.label for row in manifest.rows])
    images = [row.image.name for row in manifest.rows]
    lesions = [row.group or name for row, name in zip(manifest.rows, images, strict=True)]
    rows = []
    for name, classifier in classifiers().items():
        scores: dict[str, list[float]] = {"image": [], "lesion": []}
        for owner, owners in (("image", images), ("lesion", lesions)):
            for seed in SEEDS:
                bins = deal(labels_N.tolist(), owners, dict.fromkeys(CLASSES, (0.8, 0.2)), seed)
                test_N = np.array(bins) == 1
                classifier.fit(features_NF[~test_N], labels_N[~test_N])
                guessed = classifier.predict(features_NF[test_N])
                scores[owner].append(float(balanced_accuracy_score(labels_N[test_N], guessed)))
                print(f"{name}, by {owner}, seed {seed}: {scores[owner][-1]:.3f}", flush=True)
        rows.append(Row(name, scores["image"], scores["lesion"]))
    return rows


def main() -> None:
    if not {"HAM10000", "WEIGHTS"} <= os.environ.keys():
        print("left out: set HAM10000 and WEIGHTS to the folders with the images and the weights")
        return
    logging.getLogger("consilium").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    manifest = read(Path(os.environ["HAM10000"]))
    _write_page(manifest, measure(manifest, features(manifest, Path(os.environ["WEIGHTS"]))))


# --- the page --------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval of Student's t over the seeds."""
    half = T_4 * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def _write_page(manifest: Manifest, rows: Sequence[Row]) -> None:
    lesions = {row.group for row in manifest.rows}
    lines = [
        f"Balanced accuracy on a fifth of the {len(manifest.rows):,} images ({len(lesions):,} lesions), "
        "seven classes, with a split by image and with one by lesion: same features, same classifier, same seeds.",
        "",
        markdown_table(
            ["classifier", "by image", "by lesion", "gap, seed by seed"],
            [[row.classifier, *map(interval, (row.by_image, row.by_lesion, row.gaps))] for row in rows],
        ),
        "",
        f"Mean of the split's seeds {SEEDS[0]} to {SEEDS[-1]}, ± the 95 % interval of Student's t "
        f"over the five. Features: {MODEL['encoder']} as trained on ImageNet, frozen, "
        f"{MODEL['image_size']} x {MODEL['image_size']} pixels of the centre.",
    ]
    write_page(
        PAGE,
        "HAM10000 by image and by lesion",
        lines,
        command="HAM10000=DIR WEIGHTS=DIR python -m benchmarks split_gap",
        conditions=f"one thread of two shared cores, {time.process_time():.0f} s of processor time.",
    )


if __name__ == "__main__":
    main()
