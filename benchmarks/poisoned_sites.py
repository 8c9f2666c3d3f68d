"""One poisoned site of five, against each rule: what is left of the balanced accuracy.

Real rounds, real trainers and a real, if small, training problem: synthetic pictures of three
classes from five cameras, trained in one process. The poisoned site trains like the others and
then changes its delta; its score stays honest, so the figure is over the same test images
everywhere. Writes docs/results/poisoned-sites.md.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._page import RESULTS, write_page
from client.config import GroupedSplit, load_site
from client.data.simulation import discover, site_files, synthetic
from client.trainer import Trainer
from common import seeds, wire
from common.config import StudyConfig
from common.errors import QuorumNotMet
from common.metrics import figures
from common.metrics.pooling import total
from common.weights import Arrays, norm
from common.wire import codec
from server.enrolment import cohort as enrolment
from server.report.text import markdown_table
from server.rounds.loop import run_rounds
from server.rounds.sites import InProcessSites
from server.state import RoundState

PAGE = RESULTS / "poisoned-sites.md"
SITES = ("north", "south", "east", "west", "centre")
POISONED = "east"
SEEDS = (0, 1)
ROUNDS = 10
STUDY: dict[str, Any] = {
    "classes": ("mel", "nv", "vasc"),
    "model": {"encoder": "test_efficientnet", "image_size": 32},
    "rounds": ROUNDS,
    "local": {
        "epochs": 2,
        "batch_size": 16,
        "augmentation": "none",
        "precision": "float32",
        "optimizer": {"kind": "adamw", "lr": 3e-3},
    },
}

Answer = Callable[[bytes], bytes]
Attack = Callable[[Arrays, np.random.Generator], Arrays]


def sign_flip(delta: Arrays, _: np.random.Generator) -> Arrays:
    return {name: -array for name, array in delta.items()}


def times_100(delta: Arrays, _: np.random.Generator) -> Arrays:
    return {name: (100 * array).astype(array.dtype) for name, array in delta.items()}


def noise(delta: Arrays, rng: np.random.Generator) -> Arrays:
    """Gaussian, in place of the delta, ten times as long."""
    drawn = {name: rng.normal(size=delta[name].shape) for name in sorted(delta)}  # they come in any order
    factor = 10 * norm(delta) / norm(drawn)
    return {name: (factor * drawn[name]).astype(array.dtype) for name, array in delta.items()}


ATTACKS: dict[str, Attack | None] = {
    "no poisoned site": None,
    "sign flipped": sign_flip,
    "times 100": times_100,
    "Gaussian noise": noise,
}


@dataclass(frozen=True)
class Defence:
    aggregation: dict[str, Any]
    admission: dict[str, Any] = field(default_factory=dict)


DEFENCES = {
    "`mean`": Defence({"kind": "mean"}),
    "`mean`, `norm_clip: 5`": Defence({"kind": "mean", "norm_clip": 5.0}),
    "`mean`, `max_norm_ratio: 3`": Defence({"kind": "mean"}, {"max_norm_ratio": 3.0}),
    "`trimmed_mean`, `trim: 0.25`": Defence({"kind": "trimmed_mean", "trim": 0.25}),
    "`median`": Defence({"kind": "median"}),
    "`krum`, `num_byzantine: 1`": Defence({"kind": "krum", "num_byzantine": 1}),
    "`multi_krum`, 1, `num_selected: 3`": Defence(
        {"kind": "multi_krum", "num_byzantine": 1, "num_selected": 3}
    ),
    "`geometric_median`": Defence({"kind": "geometric_median"}),
}


def poisoned(answer: Answer, attack: Attack, seed: int) -> Answer:
    def answer_poisoned(request: bytes) -> bytes:
        reply = codec.from_bytes(answer(request))
        if not isinstance(reply, wire.RoundAnswer) or not reply.delta:
            return codec.to_bytes(reply)
        rng = np.random.default_rng(seeds.derive(seed, "poison", reply.round))
        return codec.to_bytes(reply.model_copy(update={"delta": attack(reply.delta, rng)}))

    return answer_poisoned


def balanced_accuracy(defence: Defence, trainers: dict[str, Answer], seed: int) -> float | None:
    """Of the final weights, over all sites' test images; None if the study could not finish."""
    # Refusing may cost the poisoned site's vote; Krum has to have all five. No site is set aside: the
    # final weights are scored by every site, so that each figure is over the same images.
    required = len(SITES) - 1 if defence.admission else len(SITES)
    study = StudyConfig.model_validate(
        STUDY
        | {
            "name": "poisoned",
            "sites": {"train": SITES, "required": required},
            "aggregation": defence.aggregation,
            "admission": defence.admission,
            "seed": seed,
        }
    )
    sites = InProcessSites(trainers)
    cohort = enrolment.enrol(study, sites, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    try:
        *_, closing = run_rounds(study, sites, cohort, start)
    except QuorumNotMet:
        return None
    return figures(total(closing.test_scores)).balanced_accuracy


def main() -> None:
    logging.getLogger("consilium").setLevel(logging.CRITICAL)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        synthetic.generate(
            out / "images", sites=SITES, images_per_site=80, image_size=64, classes=STUDY["classes"]
        )
        site_files.write_sites(discover.discover(out / "images"), out, synthetic=True, threads=1)
        honest = {site: _trainer(out / f"{site}.yaml") for site in SITES}
        for name, defence in DEFENCES.items():
            cells = []
            for attack in ATTACKS.values():
                found = []
                for seed in SEEDS:
                    trainers = honest
                    if attack is not None:
                        trainers = honest | {POISONED: poisoned(honest[POISONED], attack, seed)}
                    found.append(balanced_accuracy(defence, trainers, seed))
                cells.append(_cell(found))
            rows.append([name, *cells])
            print(*rows[-1], sep="  ", flush=True)
    _write_page([markdown_table(["aggregation", *ATTACKS], rows)])


def _trainer(settings: Path) -> Answer:
    # Many test images, for a figure whose noise is smaller than what the rules do.
    return Trainer(load_site(settings).model_copy(update={"split": GroupedSplit(test_share=0.4)})).answer


def _cell(found: list[float | None]) -> str:
    if None in found:
        return f"{found.count(None)} of {len(found)} studies failed"
    done = [value for value in found if value is not None]
    return f"{statistics.mean(done):.2f} ({', '.join(f'{value:.2f}' for value in done)})"


def _write_page(table: list[str]) -> None:
    lines = [
        "**SYNTHETIC images: the figures say nothing about medicine, only about the rules.**",
        "",
        f"Balanced accuracy of the final weights over all sites' test images after {ROUNDS} rounds, three classes "
        f"(guessing: 0.33); mean of the seeds {' and '.join(map(str, SEEDS))}, each in brackets. The poisoned site "
        f"({POISONED}) trains like the others in every round, then turns its delta around, multiplies it by 100, or "
        "sends Gaussian noise ten times as long instead.",
        "",
        *table,
    ]
    write_page(
        PAGE,
        "One poisoned site of five",
        lines,
        command="python -m benchmarks poisoned_sites",
        conditions=f"one thread, {time.process_time():.0f} s of processor time.",
    )


if __name__ == "__main__":
    main()
