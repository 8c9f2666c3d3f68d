"""A grid of studies on a small part of HAM10000, in one process: for machines without a GPU.

The real rounds and the real trainers, with function calls between them, on at most 30 training and 15
test lesions of each class and source, one image each. What a site is sent and sends back is counted in the
bytes between gateway and trainer. Results go to a file of JSON lines; what is there is not run again.

    HAM10000=DIR WEIGHTS=DIR python -m benchmarks.small_grid GRID.yaml RESULTS.jsonl [VARIANT or VARIANT-seedN ...]

DIR has labels.csv (file, label, lesion_id, site). `python -m benchmarks.small_grid RESULTS.jsonl` prints
the table of what is there.
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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from client.config import SiteConfig
from client.trainer import Trainer
from common.config import StudyConfig
from common.metrics import empty
from common.settings import load_settings
from server import enrolment
from server.experiments import Grid, studies
from server.rounds import run_rounds
from server.sites import InProcessSites
from server.state import RoundState

TRAIN, TEST = 30, 15
T_2 = 4.303
"""97.5 % of Student's t with 2 degrees of freedom: three seeds."""


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
        for place, number in enumerate(order[: num_test + TRAIN]):
            split = "test" if place < num_test else "train"
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
        scores.append(sum(state.scores.values(), start=empty(len(study.classes))))
    down, up = (sum(size[way] for size in sizes[: len(trainers)]) / len(trainers) for way in (0, 1))
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


def table(lines: list[dict[str, object]]) -> Iterator[str]:
    """Mean over the seeds with Student's interval; round 0 are the weights before any training."""
    by_variant: dict[str, list[dict[str, object]]] = defaultdict(list)
    for line in lines:
        by_variant[str(line["study"]).rsplit("-seed", 1)[0]].append(line)
    yield "| variant | seeds | balanced accuracy | by seed | round 0 | MiB a site and round, down | up | CPU s |"
    yield "|---|---:|---|---|---:|---:|---:|---:|"
    for variant, runs in by_variant.items():
        last = [run["curve"][-1] for run in runs]  # type: ignore[index]
        half = T_2 * statistics.stdev(last) / 3**0.5 if len(last) == 3 else float("nan")
        mean = {key: statistics.mean(run[key] for run in runs) for key in ("mib_down", "mib_up", "cpu_s")}  # type: ignore[misc]
        first = statistics.mean(run["curve"][0] for run in runs)  # type: ignore[index]
        yield (
            f"| {variant} | {len(last)} | {statistics.mean(last):.3f} ± {half:.3f} "
            f"| {', '.join(f'{value:.3f}' for value in last)} | {first:.3f} | {mean['mib_down']:.2f} "
            f"| {mean['mib_up']:.2f} | {mean['cpu_s']:.0f} |"
        )


def main() -> None:
    grid_file = [Path(argument) for argument in sys.argv[1:2] if argument.endswith(".yaml")]
    results = Path(sys.argv[1 + len(grid_file)])
    logging.getLogger("consilium").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if grid_file:
        grid = load_settings(grid_file[0], Grid, "grid")
        done = {line["study"] for line in lines}
        with tempfile.TemporaryDirectory() as folder:
            sites = write_sites(Path(os.environ["HAM10000"]), Path(os.environ["WEIGHTS"]), Path(folder))
            for (variant, _), study in studies(grid, grid_file[0].name).items():
                if study.name in done or (sys.argv[3:] and not {variant, study.name} & {*sys.argv[3:]}):
                    continue
                lines.append(run(study, sites))
                print(f"{study.name}: {lines[-1]['curve']}", flush=True)
                with results.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
