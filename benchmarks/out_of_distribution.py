"""Outlier scores on real images: which one, how much shrinkage, and how well they tell other images from lesions.

A short federated study over the four sources of HAM10000 trains MobileNetV2 from ImageNet's weights. Then images of
another kind are scored with the final network: every second brain MRI, noise, and lesions of an independent source
(ISIC UDA-1). In distribution are the sources' held-out images. The score and its shrinkage are chosen by validation
images against one half of each other kind, and the figures are of test images against the other half. The last table is
what `predict` says with the run's own limit. Writes docs/results/out-of-distribution.md. Needs images and weights:

    SKIN=DIR BRAIN=DIR WEIGHTS=DIR python -m benchmarks out_of_distribution

SKIN and BRAIN are folders with labels.csv (file, label, domain, group) and 128 x 128 images.
"""

import csv
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks._page import RESULTS, write_page
from client import predict
from client.config import Columns, ColumnSplit, CsvData, PolicyConfig, RowFilter, SiteConfig
from client.heads import features
from client.predict.image_classifier import Squares
from client.trainer import Trainer
from common.config import StudyConfig
from common.heads import Floats, softmax
from common.settings import to_yaml
from server.conduct import conduct
from server.config import ServerConfig
from server.heads import outliers, solvers
from server.heads.solvers import Statistics
from server.report.text import markdown_table
from server.rounds.sites import InProcessSites

PAGE = RESULTS / "out-of-distribution.md"
SOURCES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
SHRINKAGES = (0.02, 0.1, 0.3, 0.5, 0.8)
SEED, NUM_NOISE = 0, 100
STUDY: dict[str, Any] = {
    "name": "outliers",
    "classes": CLASSES,
    "sites": {"train": SOURCES},
    "model": {
        "encoder": "mobilenetv2_100",
        "image_size": 64,
        "weights": {
            "kind": "file",
            "name": "mobilenetv2_100.timm.safetensors",
            "sha256": "a3ecb9791104a396ba30131ec1394534364be0c499ab598712ac5187e115084c",
        },
    },
    "rounds": 1,
    "local": {"batch_size": 32, "optimizer": {"kind": "adamw", "lr": 0.0003}},
    "out_of_distribution": {},
    "seed": SEED,
}

Rows = npt.NDArray[np.float32]


def main() -> None:
    if not {"SKIN", "BRAIN", "WEIGHTS"} <= os.environ.keys():
        print("left out: set SKIN, BRAIN and WEIGHTS to folders with images and weights")
        return
    skin, brain = Path(os.environ["SKIN"]), Path(os.environ["BRAIN"])
    started, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        sides = _split(skin, scratch)
        run = _run(skin, scratch)
        images = {**sides, **_others(skin, brain, scratch)}
        classifier = predict.load(run, None, Path(os.environ["WEIGHTS"]), torch.device("cpu"))
        found = {kind: _features(classifier, [path for path, _ in rows]) for kind, rows in images.items()}
        labels_N = np.array([CLASSES.index(label) for _, label in images["train"]])
        table = _compared(found, labels_N)
        record = classifier.outliers
        said = "no outlier score" if record is None else record.describe()
        flagged = _flagged(classifier, found)
    minutes = (time.perf_counter() - started) / 60
    write_page(
        PAGE,
        "Outlier scores on lesions, brain MRI and noise",
        [
            _ABOUT.format(**{kind: len(rows) for kind, rows in images.items()}),
            "",
            table,
            "",
            said + ".",
            "",
            flagged,
        ],
        "SKIN=DIR BRAIN=DIR WEIGHTS=DIR python -m benchmarks out_of_distribution",
        f"2 shared cores with load {load:.0f}, no GPU, seed {SEED}; {minutes:.0f} minutes.",
    )


_ABOUT = (
    "`mobilenetv2_100` from ImageNet's weights, a round of FedAvg (one epoch) on {train} lesions of HAM10000's four "
    "sources at 64 pixels, {validation} for validation and {test} for the test, by lesion. AUROC of telling other "
    "images from them, *chosen on*: validation images against one half of the other kind; *test*: test images against "
    "the other half. "
    "Mahalanobis: distance to the nearest class mean (Lee et al. 2018); relative: less the distance to the mean of all "
    "(Ren et al. 2021); both with one covariance of the summed statistics, shrunk. Softmax: one minus the largest "
    "probability (Hendrycks and Gimpel 2017), which needs no sums."
)


# --- the study ---------------------------------------------------------------------------------


def _split(skin: Path, scratch: Path) -> dict[str, list[tuple[Path, str]]]:
    """Three fifths of each source train, a fifth each validates and tests; no two images are of one lesion."""
    with (skin / "labels.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["domain"] in SOURCES]
    order = np.random.default_rng(SEED).permutation(len(rows))
    sides: dict[str, list[tuple[Path, str]]] = {"train": [], "validation": [], "test": []}
    for place, number in enumerate(order.tolist()):
        side = ("train", "train", "train", "validation", "test")[place % 5]
        rows[number]["split"] = side
        sides[side].append((skin / rows[number]["file"], rows[number]["label"]))
    with (scratch / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(rows)
    return sides


def _run(skin: Path, scratch: Path) -> Path:
    """The folder of the finished study."""
    study, run = StudyConfig(**STUDY), scratch / "run"
    run.mkdir()
    (run / "study.yaml").write_bytes(to_yaml(study.model_dump(mode="json")))
    trainers = {}
    for source in SOURCES:
        data = CsvData(
            labels=scratch / "labels.csv",
            images=skin,
            columns=Columns(group="group", split="split"),
            row_filter=RowFilter(column="domain", values=(source,)),
        )
        site = SiteConfig(
            name=source, data=data, split=ColumnSplit(), state_dir=scratch / source, device="cpu", threads=1,
            weights_dir=Path(os.environ["WEIGHTS"]), policy=PolicyConfig(heads=("*",)),
        )  # fmt: skip
        trainers[source] = Trainer(site).answer
    node_ids = {source: number for number, source in enumerate(SOURCES, start=1)}
    conduct(ServerConfig(study=run / "study.yaml", run_dir=run, node_ids=node_ids), InProcessSites(trainers))
    return run


def _others(skin: Path, brain: Path, scratch: Path) -> dict[str, list[tuple[Path, str]]]:
    """Images of other kinds, by kind."""
    with (skin / "labels.csv").open(encoding="utf-8") as file:
        uda = [(skin / row["file"], "") for row in csv.DictReader(file) if row["domain"] not in SOURCES]
    with (brain / "labels.csv").open(encoding="utf-8") as file:
        scans = [(brain / row["file"], "") for row in csv.DictReader(file)][::2]
    draws, noise = np.random.default_rng(SEED), []
    for number in range(NUM_NOISE):
        path = scratch / f"noise-{number}.png"
        Image.fromarray(draws.integers(0, 256, (128, 128, 3), np.uint8)).save(path)
        noise.append((path, ""))
    return {"brain MRI": scans, "noise": noise, "ISIC UDA-1": uda}


def _features(classifier: predict.ImageClassifier, paths: Sequence[Path]) -> tuple[Rows, Floats]:
    """Features and logits of the network."""
    squares = Squares(predict.squares(classifier, paths), classifier.preprocessing)
    return features.extract(
        classifier.model, squares, layer=None, device=torch.device("cpu"), precision="float32"
    )


# --- scores ------------------------------------------------------------------------------------

Found = Mapping[str, tuple[Rows, Floats]]


def _sums(rows_NF: Floats, labels_N: npt.NDArray[np.int64], weights_C: Floats) -> Statistics:
    of_class_CN = (labels_N == np.arange(len(weights_C))[:, None]).astype(np.float64)
    moments = (rows_NF * weights_C[labels_N][:, None]).T @ rows_NF
    return Statistics(
        of_class_CN.sum(axis=1), of_class_CN @ rows_NF, of_class_CN @ rows_NF**2, moments, weights_C
    )


def _scores(found: Found, labels_N: npt.NDArray[np.int64]) -> dict[str, dict[str, Floats]]:
    """By score, then by kind of images: larger is more of an outlier."""
    train_NF = found["train"][0].astype(np.float64)
    view = solvers.scaled(_sums(train_NF, labels_N, np.ones(len(CLASSES))))
    sums = _sums(
        view.of(train_NF), labels_N, solvers.balanced(np.bincount(labels_N, minlength=7).astype(float))
    )
    share_C = sums.weighted_C / sums.weighted_C.sum()
    mean_D, within_DD = share_C @ sums.means_CD, solvers.within_classes(sums)
    spread_CD = sums.means_CD - mean_D
    total_DD = within_DD + (spread_CD.T * share_C) @ spread_CD
    scores = {"softmax": {kind: 1 - softmax(logits_NC).max(axis=1) for kind, (_, logits_NC) in found.items()}}
    for share in SHRINKAGES:
        near = outliers.detector(sums, view, share)
        inverse_DD = np.linalg.inv(solvers.shrunk(total_DD, share))
        inside_DD = np.linalg.inv(solvers.shrunk(within_DD, share))
        mahalanobis, relative = {}, {}
        for kind, (rows_NF, _) in found.items():
            rows_ND = view.of(rows_NF)
            mahalanobis[kind] = near.scores(rows_NF)
            to_all_N = np.einsum("nd,de,ne->n", rows_ND - mean_D, inverse_DD, rows_ND - mean_D, optimize=True)
            to_classes = [
                np.einsum("nd,de,ne->n", rows_ND - one_D, inside_DD, rows_ND - one_D, optimize=True)
                for one_D in sums.means_CD
            ]
            relative[kind] = np.min(to_classes, axis=0) - to_all_N
        scores[f"Mahalanobis, shrinkage {share:g}"] = mahalanobis
        scores[f"relative, shrinkage {share:g}"] = relative
    return scores


def _compared(found: Found, labels_N: npt.NDArray[np.int64]) -> str:
    kinds = [kind for kind in found if kind not in ("train", "validation", "test")]
    lines = []
    for name, scores in _scores(found, labels_N).items():
        cells = []
        for kind in kinds:
            one, other = scores[kind][::2], scores[kind][1::2]
            cells += [f"{auroc(scores['validation'], one):.3f}", f"{auroc(scores['test'], other):.3f}"]
        lines.append([name, *cells])
        print(lines[-1], flush=True)
    return markdown_table(
        ["score", *(f"{kind}, {side}" for kind in kinds for side in ("chosen on", "test"))], lines
    )


def auroc(inside_N: Floats, outside_M: Floats) -> float:
    """Chance that an image of another kind has the larger score; ties count half."""
    greater = (outside_M[:, None] > inside_N).mean()
    return float(greater + 0.5 * (outside_M[:, None] == inside_N).mean())


def _flagged(classifier: predict.ImageClassifier, found: Found) -> str:
    """What the run's own detector says of each kind of images."""
    detector, record = classifier.detector, classifier.outliers
    if detector is None or record is None:
        return ""
    lines = []
    for kind, (rows_NF, _) in found.items():
        scores_N = detector.scores(rows_NF)
        share = "-" if record.limit is None else f"{100 * (scores_N > record.limit).mean():.1f}"
        low, middle, high = np.quantile(scores_N, [0.05, 0.5, 0.95])
        lines.append([kind, str(len(scores_N)), f"{middle:.2f} ({low:.2f} to {high:.2f})", share])
        print(lines[-1], flush=True)
    return markdown_table(
        ["images", "number", "outlier score, median (5 % to 95 %)", "flagged, percent"], lines
    )


if __name__ == "__main__":
    main()
