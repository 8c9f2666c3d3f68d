"""What a hospital that took no part in training gains without labels: statistics measured on its images, and views.

A finished run classifies the test images of sources that it has not seen: as it is, with the statistics of batch
normalisation measured on that source's other images, with four views, with both. Balanced accuracy, and the gain over
the first row with its interval over lesions (2,000 bootstrap draws, seed 0).

    WEIGHTS=DIR python -m benchmarks unseen_source RUN LABELS.csv SOURCE [SOURCE ...]

LABELS.csv has file, label, lesion_id and site, as `consilium-site partition` takes it. Half of the lesions of a source,
drawn with seed 0, are tested on; the other half is what the statistics are measured on.
"""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consilium_fl.prediction import load_predictor
from server.report.text import markdown_table

_MOST = 600
"""Images of a source on each side."""


def main() -> None:
    run, table, sources = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = []
    for source in sources:
        adapt_to, test = _halves([row for row in rows if row["site"] == source])
        files = [table.parent / row["file"] for row in test]
        lesions = [row["lesion_id"] for row in test]
        others = [table.parent / row["file"] for row in adapt_to]
        before: npt.NDArray[np.int64] | None = None
        for name, images, views in (
            ("as it is", [], 1),
            ("adapted", others, 1),
            ("4 views", [], 4),
            ("adapted, 4 views", others, 4),
        ):
            predictor = load_predictor(run, weights_dir=os.environ["WEIGHTS"], adapt_to=images, views=views)
            labels = np.array([predictor.classes.index(row["label"]) for row in test])
            found = predictor.probabilities(files).argmax(axis=1)
            gain = "" if before is None else _gain(labels, before, found, lesions)
            before = found if before is None else before
            lines.append([source, str(len(files)), name, f"{_balanced(labels, found):.3f}", gain])
            print("  ".join(lines[-1]), flush=True)
    head = ["source", "test images", "predicted", "balanced accuracy", "gain (95 %)"]
    print(markdown_table(head, lines))


def _halves(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    lesions = sorted({row["lesion_id"] for row in rows})
    tested = set(np.random.default_rng(0).permutation(lesions)[: len(lesions) // 2])
    sides = [[row for row in rows if (row["lesion_id"] in tested) == test] for test in (False, True)]
    return sides[0][:_MOST], sides[1][:_MOST]


def _balanced(labels: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> float:
    return float(np.mean([np.mean(found[labels == label] == label) for label in np.unique(labels)]))


def _gain(
    labels: npt.NDArray[np.int64],
    before: npt.NDArray[np.int64],
    after: npt.NDArray[np.int64],
    lesions: list[str],
) -> str:
    _, places = np.unique(lesions, return_inverse=True)
    images = [np.flatnonzero(places == place) for place in range(places.max() + 1)]
    generator, gains = np.random.default_rng(0), []
    for _ in range(2000):
        drawn = np.concatenate([images[place] for place in generator.integers(0, len(images), len(images))])
        gains.append(_balanced(labels[drawn], after[drawn]) - _balanced(labels[drawn], before[drawn]))
    low, high = np.quantile(gains, [0.025, 0.975])
    gain = _balanced(labels, after) - _balanced(labels, before)
    return f"{gain:+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    main()
