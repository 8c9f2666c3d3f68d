"""Accuracy of classical heads that are made of sums with noise, against epsilon.

The frozen encoder of configs/study/heads.yaml at 64 pixels, HAM10000's four sources as sites, one message from each, as
the sites make it (`client/privacy/head_sums.py`) and the server reads it (`server/heads/noisy_sums.py`). A lesion is
the patient. Bound and components were chosen on another split (seed 100) with epsilon 3, and are the same in every row.
Writes the second part of docs/results/privacy.md:

    HAM10000=DIR WEIGHTS=DIR FEATURES=DIR python -m benchmarks private_heads
"""

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score

from benchmarks._page import READING, measured
from benchmarks.heads import STUDY, World, encoded
from benchmarks.privacy import COUNT_NOISE, DELTA, EPSILONS, PAGE, SEEDS, Data, sides
from client.privacy.accountant import Charge, epsilon
from client.privacy.head_sums import sums_of_patients, with_noise
from client.training.private.secure_random import SecureRandom
from common.config import NoisySums, StudyConfig
from common.heads import FittedHead, HeadForm
from common.settings import load_settings
from server.heads import noisy_sums, solvers
from server.report.text import markdown_table

HEADS = ("lda", "ridge", "nearest_mean", "naive_bayes")
BLOCKS = ("counts", "sums", "moments")
COMPONENTS: tuple[int | None, ...] = (None, 8, 64)
BOUNDS = (30.0, 60.0, 90.0)


def noise_for(target: float) -> float:
    """The smallest noise, to 1 %, with which counts and sums cost no more than `target`."""
    low, high = 0.2, 100.0
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        enough = epsilon([Charge(COUNT_NOISE, 1.0, 1), Charge(middle, 1.0, 1)], DELTA) <= target
        low, high = (low, middle) if enough else (middle, high)
    return high


def statistics_of(data: Mapping[str, Data], settings: NoisySums, *, noisy: bool) -> noisy_sums.Noisy:
    """Sums over the sites."""
    parts: list[Mapping[str, Any]] = []
    for rows_NF, labels_N, lesions in data.values():
        sums = sums_of_patients(rows_NF, labels_N, lesions, 7, settings.max_feature_norm, BLOCKS)
        parts.append(with_noise(sums, settings, SecureRandom()) if noisy else sums)
    return noisy_sums.added(parts, [1.0] * len(parts), settings)


def scored(
    split: Mapping[str, Mapping[str, Data]], found: noisy_sums.Noisy, components: int | None
) -> dict[str, dict[str, float]]:
    """By head: accuracy and balanced accuracy on the test images of all sources."""
    view = found.view(components)
    sums = found.statistics(view, balanced=True)
    parameters = {
        "lda": solvers.lda(sums, "equal", 0.02),
        "ridge": solvers.ridge(sums, 1.0),
        "nearest_mean": solvers.nearest_mean(sums),
        "naive_bayes": solvers.naive_bayes(sums, "equal", 1e-9),
    }
    labels_N = np.concatenate([one["test"][1] for one in split.values()])
    figures = {}
    for head in HEADS:
        form = HeadForm(title=head, form="gaussian" if head == "naive_bayes" else "linear")
        made = FittedHead(form, view, parameters[head])
        found_N = np.concatenate([made.probabilities(one["test"][0]).argmax(1) for one in split.values()])
        figures[head] = {
            "accuracy": float((labels_N == found_N).mean()),
            "balanced": float(balanced_accuracy_score(labels_N, found_N)),
        }
    return figures


def main() -> None:
    if not {"HAM10000", "WEIGHTS", "FEATURES"} <= os.environ.keys():
        print(
            "left out: set HAM10000, WEIGHTS and FEATURES to folders with images, weights and room for features"
        )
        return
    study = load_settings(STUDY, StudyConfig, "study")
    study = study.model_copy(update={"model": study.model.model_copy(update={"image_size": 64})})
    ham, weights = Path(os.environ["HAM10000"]), Path(os.environ["WEIGHTS"])
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        rows = encoded(ham, weights, Path(os.environ["FEATURES"]), study)
        world = World(ham, weights, Path(scratch), study, rows)
        lengths = np.linalg.norm(np.stack(list(rows.values())), axis=1)
        print("lengths", np.percentile(lengths, [5, 50, 95]), flush=True)
        noise = {target: None if target is None else noise_for(target) for target in EPSILONS}
        print(noise, flush=True)
        chosen = _chosen(sides(world, 100), noise[3.0] or 1.0)
        splits = {seed: sides(world, seed) for seed in SEEDS}
    lines = []
    bound, components = chosen
    for target in EPSILONS:
        settings = NoisySums(noise=1.0, max_feature_norm=bound).model_copy(
            update={"noise": noise[target] or 1e-9}
        )
        runs = []
        for split in splits.values():
            sums = statistics_of(_train(split), settings, noisy=target is not None)
            runs.append(scored(split, sums, components))
        for head in HEADS:
            lines.append(
                [
                    "none" if target is None else f"{target:g}",
                    "0" if noise[target] is None else f"{noise[target]:.2f}",
                    head,
                    *(_range([run[head][key] for run in runs]) for key in ("accuracy", "balanced")),
                ]
            )
            print(lines[-1], flush=True)
    _write(lines, chosen, time.perf_counter() - started)


def _train(split: Mapping[str, Mapping[str, Data]]) -> dict[str, Data]:
    return {site: one["train"] for site, one in split.items()}


def _chosen(split: Mapping[str, Mapping[str, Data]], noise: float) -> tuple[float, int | None]:
    """The bound and the components with the best mean of balanced accuracies, on a split that is not in the table."""
    tried: dict[tuple[float, int | None], float] = {}
    for bound in BOUNDS:
        sums = statistics_of(_train(split), NoisySums(noise=noise, max_feature_norm=bound), noisy=True)
        for components in COMPONENTS:
            found = scored(split, sums, components)
            print(bound, components, found, flush=True)
            tried[bound, components] = statistics.fmean(one["balanced"] for one in found.values())
    return max(tried, key=lambda one: tried[one])


def _range(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _write(lines: list[list[str]], chosen: tuple[float, int | None], seconds: float) -> None:
    page = PAGE.read_text(encoding="utf-8").partition(READING)[0].rstrip("\n")
    table = markdown_table(["epsilon", "noise", "head", "accuracy", "balanced accuracy"], lines)
    text = (
        "**Heads from sums with noise**: the same encoder and splits, no round, one message from each of the four "
        f"sites. Epsilon is of the noisy counts and the sums together, delta 1e-5. `max_feature_norm` {chosen[0]:g} "
        f"and {chosen[1] or 'all'} components are the best of nine choices for the four heads together, at "
        "epsilon 3 on another split; that choice is not in epsilon. Classes weigh the same in LDA and ridge. "
        "Pooled test images, scored without noise; mean and range over the seeds."
    )
    command = f"HAM10000=DIR WEIGHTS=DIR FEATURES=DIR SEEDS={len(SEEDS)} python -m benchmarks private_heads"
    load = (
        f"2 shared cores with load {os.getloadavg()[0]:.0f}, one thread, no GPU; {seconds / 60:.0f} minutes with the "
        "features at hand."
    )
    PAGE.write_text(
        f"{page}\n{READING}\n\n{text}\n\n{table}\n\n{measured(command, load)}\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
