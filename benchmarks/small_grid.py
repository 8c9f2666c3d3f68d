"""A grid of studies on a small part of HAM10000, in one process: for machines without a GPU.

The real rounds and the real trainers, with function calls between them, on at most 30 training and 15
test lesions of each class and source, one image each. What a site is sent and sends back is counted in the
bytes between gateway and trainer. Results go to a file of JSON lines; what is there is not run again.

    HAM10000=DIR WEIGHTS=DIR python -m benchmarks small_grid GRID.yaml RESULTS.jsonl [VARIANT or VARIANT-seedN ...]

With SIDE=validation the lesions that are otherwise tested on are not read at all, and the figures are of as many
others: to choose by. LESIONS=N takes at most N training lesions of each class and source, and half as many others.

DIR has labels.csv (file, label, lesion_id, site). `python -m benchmarks small_grid RESULTS.jsonl` prints the table of
what is there.
"""

import csv
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.config import SiteConfig
from client.trainer import Trainer
from common.config import StudyConfig
from common.metrics import empty
from common.settings import load_settings
from server.enrolment import cohort as enrolment
from server.report.text import markdown_table
from server.rounds.loop import run_rounds
from server.rounds.sites import InProcessSites
from server.simulation.grid import Grid, studies
from server.state import RoundState

TRAIN = int(os.environ.get("LESIONS", "30"))
TEST = TRAIN // 2
VALIDATES = os.environ.get("SIDE") == "validation"


def write_sites(ham: Path, weights: Path, folder: Path) -> dict[str, SiteConfig]:
    """One site per source: one image a lesion, the first of its class up to the limits, drawn with seed 0."""
    with (ham / "labels.csv").open(encoding="utf-8") as file:
        by_lesion = {row["lesion_id"]: row for row in reversed(list(csv.DictReader(file)))}
    found = defaultdict(list)
    for row in by_lesion.values():
        found[row["site"], row["label"]].append(row)
    sites: dict[str, list[dict[str, str]]] = defaultdict(list)
    for (site, _), rows in sorted(found.items()):
        order = np.random.default_rng(0).permutation(len(rows))
        num_test = min(TEST, max(1, round(len(rows) / 4))) if len(rows) > 1 else 0
        if VALIDATES:
            order = order[num_test:]
            num_test = min(TEST, max(1, round(len(order) / 4))) if len(order) > 1 else 0
        for place, number in enumerate(order[: num_test + TRAIN]):
            split = "train" if place >= num_test else "validation" if VALIDATES else "test"
            sites[site].append(rows[number] | {"file": str(ham / rows[number]["file"]), "split": split})
    return {site: _site(site, rows, weights, folder) for site, rows in sites.items()}


def _site(site: str, rows: list[dict[str, str]], weights: Path, folder: Path) -> SiteConfig:
    labels = folder / f"{site}.csv"
    with labels.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "label", "lesion_id", "split"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    columns = {"image": "file", "label": "label", "lesion": "lesion_id", "split": "split"}
    return SiteConfig.model_validate(
        {
            "name": site,
            "data": {"kind": "csv", "labels": labels, "columns": columns},
            "split": {"kind": "column"},
            "state_dir": folder / f"{site}-state",
            "weights_dir": weights,
            "device": "cpu",
            "threads": 1,
        }
    )


def run(study: StudyConfig, sites: dict[str, SiteConfig]) -> dict[str, object]:
    """One study from first weights to closing scores, as one line of the results."""
    sizes: list[tuple[int, int]] = []
    trainers = {name: Trainer(sites[name]) for name in study.sites.train}

    def counted(name: str, plan: bytes) -> bytes:
        answer = trainers[name].answer(plan)
        sizes.append((len(plan), len(answer)))
        return answer

    ways = InProcessSites({name: lambda plan, name=name: counted(name, plan) for name in trainers})
    started = time.process_time()
    cohort = enrolment.enrol(study, ways, None)
    sizes.clear()
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    scores = []
    for state in run_rounds(study, ways, cohort, start):
        now = state.test_scores if state.closing and not VALIDATES else state.scores
        scores.append(sum(now.values(), start=empty(len(study.classes))))
    # The last round of training: the first one has whole weights, whatever the study's transport.
    last = sizes[(study.rounds - 1) * len(trainers) : study.rounds * len(trainers)]
    down, up = (sum(size[way] for size in last) / len(trainers) for way in (0, 1))
    return {
        "study": study.name,
        "seed": study.seed,
        "curve": [_balanced(score.confusion_CC) for score in scores],
        "confusion": np.asarray(scores[-1].confusion_CC).tolist(),
        "mib_down": down / 2**20,
        "mib_up": up / 2**20,
        "cpu_s": time.process_time() - started,
    }


def _balanced(confusion: object) -> float:
    counts_CC = np.asarray(confusion, float)
    there_C = counts_CC.sum(axis=1) > 0
    return float((np.diag(counts_CC)[there_C] / counts_CC.sum(axis=1)[there_C]).mean())


def interval(confusion_CC: object) -> tuple[float, float]:
    """95 % of balanced accuracies when each class's test images are drawn again, 2,000 times, seed 0.

    One image a lesion, so images are drawn one by one. Says nothing about another seed of the training.
    """
    rows = [np.asarray(row) for row in np.asarray(confusion_CC) if sum(row)]
    places = [place for place, row in enumerate(np.asarray(confusion_CC)) if sum(row)]
    draws = np.random.default_rng(0)
    recalls = [
        draws.multinomial(row.sum(), row / row.sum(), 2000)[:, place] / row.sum()
        for place, row in zip(places, rows, strict=True)
    ]
    low, high = np.quantile(np.mean(recalls, axis=0), [0.025, 0.975])
    return float(low), float(high)


def table(lines: list[dict[str, Any]]) -> str:
    """Mean over the seeds; the interval is the mean of theirs. Round 0 are the weights before any training."""
    by_variant: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by_variant[line["study"].rsplit("-seed", 1)[0]].append(line)
    head = ["variant", "balanced accuracy, by seed", "mean (95 % interval)", "round 0"]
    head += ["MiB a site and round, down", "up", "CPU s"]
    rows: list[list[str]] = []
    for variant, runs in by_variant.items():
        runs.sort(key=lambda run: run["seed"])
        last = [run["curve"][-1] for run in runs]
        low, high = np.mean([interval(run["confusion"]) for run in runs], axis=0)
        down, up, cpu_s, first = (
            statistics.mean(values)
            for values in zip(
                *((run["mib_down"], run["mib_up"], run["cpu_s"], run["curve"][0]) for run in runs),
                strict=True,
            )
        )
        mean = f"{statistics.mean(last):.3f} ({low:.3f} to {high:.3f})"
        costs = [f"{first:.3f}", f"{down:.2f}", f"{up:.2f}", f"{cpu_s:.0f}"]
        rows.append([variant, ", ".join(f"{value:.3f}" for value in last), mean, *costs])
    return markdown_table(head, rows, right=4)


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "small_grid"]
    grid_file = [Path(argument) for argument in arguments[:1] if argument.endswith(".yaml")]
    if len(arguments) < 1 + len(grid_file):
        print("left out: name a grid's YAML and a file for its results")
        return
    results, wanted = Path(arguments[len(grid_file)]), {*arguments[1 + len(grid_file) :]}
    logging.getLogger("consilium").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if grid_file:
        grid = load_settings(grid_file[0], Grid, "grid")
        done = {line["study"] for line in lines}
        with tempfile.TemporaryDirectory() as folder:
            sites = write_sites(Path(os.environ["HAM10000"]), Path(os.environ["WEIGHTS"]), Path(folder))
            for (variant, _), study in studies(grid, grid_file[0].name).items():
                if study.name in done or (wanted and not {variant, study.name} & wanted):
                    continue
                lines.append(run(study, sites))
                print(f"{study.name}: {lines[-1]['curve']}", flush=True)
                with results.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
