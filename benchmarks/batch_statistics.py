"""Statistics of batch normalisation in an averaged network: as the rounds left them, or measured again.

A finished federated run classifies the validation images of its sites with the averaged statistics, with statistics of
all sites' training images together (what sums at the end of a study would give), and with those of each site's own
training images.

    WEIGHTS=DIR python -m benchmarks batch_statistics SITES RUN [RUN ...]

SITES was written by `consilium-site partition --pooled`, whose list says which image is on which side.
"""

import csv
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from sklearn.metrics import balanced_accuracy_score, f1_score

from consilium_fl.prediction import load_predictor
from server.report.text import markdown_table

Row: TypeAlias = dict[str, str]


def main() -> None:
    with (Path(sys.argv[2]) / "lists" / "pooled.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    train, scored = ([row for row in rows if row["split"] == side] for side in ("train", "validation"))
    random.Random(0).shuffle(train)  # batches of all sites
    sites = sorted({row["acquisition"] for row in rows})
    lines = []
    for run in map(Path, sys.argv[3:]):
        for name, groups in (
            ("as averaged", [([], scored)]),
            ("all training images", [(train, scored)]),
            ("each site's own", [(_of(site, train), _of(site, scored)) for site in sites]),
        ):
            labels, found = _classified(run, groups)
            balanced = balanced_accuracy_score(labels, found)
            f1 = f1_score(labels, found, average="weighted")
            lines.append([run.name, name, str(len(labels)), f"{balanced:.3f}", f"{f1:.3f}"])
            print("  ".join(lines[-1]), flush=True)
    print(markdown_table(["run", "statistics", "images", "balanced accuracy", "weighted F1"], lines))


def _of(site: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["acquisition"] == site]


def _classified(
    run: Path, groups: Sequence[tuple[Sequence[Row], Sequence[Row]]]
) -> tuple[list[str], list[str]]:
    """True and predicted classes. A group is images that the statistics are measured on, and images to classify."""
    labels: list[str] = []
    found: list[str] = []
    for measured, scored in groups:
        adapt_to = [Path(row["image"]) for row in measured]
        predictor = load_predictor(run, weights_dir=os.environ["WEIGHTS"], adapt_to=adapt_to)
        best_N = predictor.probabilities([Path(row["image"]) for row in scored]).argmax(axis=1)
        labels += [row["label"] for row in scored]
        found += [predictor.classes[best] for best in np.asarray(best_N)]
    return labels, found
