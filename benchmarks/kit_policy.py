"""What the policy of a start-up kit costs an honest study: the same study under it, and with fewer rules.

Real rounds, real heads and real trainers in one process, function calls between them. Under the kit's policy a
person has approved the study at each site. `min_cell alone` is that one rule, which leaves images out: whatever
differs between it and the kit is the other rules' doing. Writes docs/results/kit-policy.md.

    HAM10000=DIR WEIGHTS=DIR python -m benchmarks kit_policy [STUDY.yaml SITES ...]

Three studies on a part of HAM10000 (`small_grid.py`) come first: the whole network, heads on a frozen one with a
source that only scores, and a CLIP. SITES is a folder that `consilium-site simulate` or `partition` wrote; several
studies and folders may follow each other.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._page import RESULTS, write_page
from benchmarks.small_grid import write_sites
from client.config import PolicyConfig, SiteConfig, load_site
from client.governance import approval
from client.trainer import Trainer
from common.config import StudyConfig
from common.formats import yaml_text
from common.metrics import Score, figures
from common.metrics.pooling import total
from common.settings import load_settings
from common.weights import digest
from server.enrolment import cohort as enrolment
from server.heads import fit as heads
from server.heads.record import HeadsRecord
from server.provisioning.startup_kit import KIT
from server.report.text import markdown_table
from server.rounds.loop import run_rounds
from server.rounds.sites import InProcessSites
from server.state import RoundState

PAGE = RESULTS / "kit-policy.md"
SOURCES = ["rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"]
MOBILENET = {
    "encoder": "mobilenetv2_100",
    "image_size": 64,
    "weights": {
        "kind": "file",
        "name": "mobilenetv2_100.timm.safetensors",
        "sha256": "a3ecb9791104a396ba30131ec1394534364be0c499ab598712ac5187e115084c",
    },
}
BASE: dict[str, Any] = {
    "classes": ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"],
    "sites": {"train": SOURCES},
    "model": MOBILENET,
    "rounds": 5,
    "local": {
        "epochs": 1,
        "batch_size": 16,
        "optimizer": {"kind": "adamw", "lr": 0.001},
        "schedule": {"kind": "cosine", "warmup": 0.05},
    },
}
ON_HAM10000: dict[str, dict[str, Any]] = {
    "network": {},
    "heads": {
        "sites": {"train": SOURCES[1:], "evaluate": SOURCES[:1]},
        "model": {**MOBILENET, "trainable": "head"},
        "local": {**BASE["local"], "augmentation": "none"},
        "heads": {
            "local": [{"kind": "knn", "pca": 32}],
            "federated": [
                {"kind": "nearest_mean"},
                {"kind": "lda", "pca": 32},
                {"kind": "logistic", "pca": 32, "c": 0.01},
            ],
        },
    },
    "clip": {"model": {**MOBILENET, "kind": "clip", "text": {"kind": "random", "width": 384}}},
}


def kit_rules() -> dict[str, Any]:
    """The policy that every start-up kit writes out, as settings."""
    settings = yaml_text.load((KIT / "site.yaml").read_text().replace("@SITE@", "site"))
    rules: dict[str, Any] = settings["policy"]
    return rules


def policies() -> dict[str, PolicyConfig]:
    """By name. The kit's allows all heads, as a hospital does that takes part in them."""
    kit = kit_rules()
    free = {"own_first_weights": False, "hub_weights": True, "heads": ["*"], "histogram_bins": 500}
    return {
        name: PolicyConfig.model_validate(rules)
        for name, rules in (
            ("no rules", free),
            ("min_cell alone", {**free, "min_cell": kit["min_cell"]}),
            ("kit", {**kit, "heads": ["*"]}),
        )
    }


def run(study: StudyConfig, sites: dict[str, SiteConfig]) -> tuple[RoundState, HeadsRecord | None]:
    """The closing state, with the last weights and their scores, and what became of the heads."""
    for site in sites.values():
        approval.approve(
            site.state_dir, approval.Pending(study, "now"), by="benchmark", now=datetime.now(UTC)
        )
    link = InProcessSites({name: Trainer(site).answer for name, site in sites.items()})
    cohort = enrolment.enrol(study, link, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    last = list(run_rounds(study, link, cohort, start))[-1]
    return last, None if study.heads is None else heads.fit(study, link, cohort, last).record


def row(name: str, score: Score, weights: str) -> list[str]:
    """One line of the table."""
    pooled = figures(score)
    return [
        name, str(pooled.num_images), f"{pooled.accuracy:.3f}", f"{pooled.balanced_accuracy:.3f}",
        f"{pooled.f1_weighted:.3f}", f"{pooled.auroc_macro:.3f}", f"{pooled.loss:.3f}", weights,
    ]  # fmt: skip


def compared(title: str, study: StudyConfig, sites: dict[str, SiteConfig]) -> Iterator[list[str]]:
    """The study under each policy: the network's line, and a line for each head."""
    for policy, rules in policies().items():
        with tempfile.TemporaryDirectory() as state:
            there = {
                site: settings.model_copy(update={"state_dir": Path(state) / site, "policy": rules})
                for site, settings in sites.items()
                if site in study.sites.all
            }
            last, record = run(study, there)
        yield row(f"{title}, {policy}", total(last.test_scores), digest(last.weights)[:12])
        if record is None:
            continue
        results = record.results
        for head, reason in record.lacking.items():
            why = "; ".join([reason, *record.problems.values()])
            yield [f"{title}, {head}, {policy}", f"not fitted: {why}", *[""] * 6]
        titles = dict.fromkeys(result.title for of_site in results.values() for result in of_site)
        for head in [head for head in titles if head != "softmax"]:
            scores = {
                site: result.score
                for site, of_site in results.items()
                for result in of_site
                if result.title == head and result.score is not None
            }
            yield row(f"{title}, {head}, {policy}", total(scores), "")


def on_ham10000(ham: Path, weights: Path) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        sites = write_sites(ham, weights, Path(folder))
        for name, changes in ON_HAM10000.items():
            study = StudyConfig.model_validate({**BASE, "name": name, **changes})
            yield from compared(f"{name} on HAM10000", study, sites)


def on_folder(study_file: Path, folder: Path) -> Iterator[list[str]]:
    about = yaml_text.load((folder / "federation.yaml").read_text())
    study = load_settings(study_file, StudyConfig, "study")
    study = study.model_copy(
        update={
            "classes": tuple(about["classes"]),
            "sites": study.sites.model_copy(update={"train": tuple(about["sites"])}),
        }
    )
    sites = {site: load_site(folder / f"{site}.yaml") for site in about["sites"]}
    yield from compared(f"{study.name} on {folder.name}", study, sites)


def main() -> None:
    """Compare, print and write."""
    logging.getLogger("consilium").setLevel(logging.ERROR)
    arguments = sys.argv[2:]
    if len(arguments) % 2 or not {"HAM10000", "WEIGHTS"} <= os.environ.keys():
        sys.exit(__doc__)
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    head = [
        "study",
        "test images",
        "accuracy",
        "balanced accuracy",
        "weighted F1",
        "AUROC",
        "loss",
        "weights",
    ]
    rows = list(on_ham10000(Path(os.environ["HAM10000"]), Path(os.environ["WEIGHTS"])))
    rows += [line for study, folder in pairs for line in on_folder(Path(study), Path(folder))]
    lines = [markdown_table(head, rows, right=len(head) - 1)]
    print(lines[0])
    names = " ".join(f"{Path(study).name} {Path(folder).name}" for study, folder in pairs)
    load = os.getloadavg()[0]
    write_page(
        PAGE,
        "What the policy of a start-up kit costs an honest study",
        lines,
        f"HAM10000=DIR WEIGHTS=DIR python -m benchmarks kit_policy {names}".strip(),
        f"{os.cpu_count()} cores, load {load:.1f} at the end, one run each",
    )
