"""What the policy of a start-up kit costs an honest study: the same study under it, and without rules.

Real rounds and real trainers in one process, function calls between them. Under the kit's policy a person has
approved the study at each site. Writes docs/results/kit-policy.md.

    python -m benchmarks kit_policy STUDY.yaml SITES [SEEDS]

SITES is a folder that `consilium-site simulate` or `partition` wrote. Several studies and folders may follow each
other: STUDY SITES STUDY SITES.
"""

import logging
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks._page import RESULTS, write_page
from client.config import PolicyConfig, SiteConfig, load_site
from client.governance import approval
from client.trainer import Trainer
from common import yaml_text
from common.config import StudyConfig
from common.metrics import figures
from common.metrics.pooling import total
from common.settings import load_settings
from common.weights import digest
from server.enrolment import cohort as enrolment
from server.provisioning.startup_kit import KIT
from server.rounds.loop import run_rounds
from server.rounds.sites import InProcessSites
from server.state import RoundState

PAGE = RESULTS / "kit-policy.md"


def kit_rules() -> dict[str, Any]:
    """The policy that every start-up kit writes out, as settings."""
    settings = yaml_text.load((KIT / "site.yaml").read_text().replace("@SITE@", "site"))
    rules: dict[str, Any] = settings["policy"]
    return rules


def run(study: StudyConfig, sites: dict[str, SiteConfig]) -> RoundState:
    """The closing state: the last weights and their scores."""
    for site in sites.values():
        approval.approve(
            site.state_dir, approval.Pending(study, "now"), by="benchmark", now=datetime.now(UTC)
        )
    link = InProcessSites({name: Trainer(site).answer for name, site in sites.items()})
    cohort = enrolment.enrol(study, link, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    return list(run_rounds(study, link, cohort, start))[-1]


def row(name: str, state: RoundState) -> list[str]:
    """One line of the table."""
    pooled = figures(total(state.scores))
    return [
        name, str(pooled.num_images), f"{pooled.accuracy:.3f}", f"{pooled.balanced_accuracy:.3f}",
        f"{pooled.f1_weighted:.3f}", f"{pooled.auroc_macro:.3f}", f"{pooled.loss:.3f}", digest(state.weights)[:12],
    ]  # fmt: skip


def compared(study_file: Path, folder: Path) -> list[list[str]]:
    """The study without rules, and under the kit's policy."""
    about = yaml_text.load((folder / "federation.yaml").read_text())
    study = load_settings(study_file, StudyConfig, "study")
    study = study.model_copy(
        update={
            "classes": tuple(about["classes"]),
            "sites": study.sites.model_copy(update={"train": tuple(about["sites"])}),
        }
    )
    rows = []
    for name, policy in (
        ("no rules", None),
        ("kit", PolicyConfig.model_validate({**kit_rules(), "heads": ["*"]})),
    ):
        with tempfile.TemporaryDirectory() as state:
            sites = {
                site: load_site(folder / f"{site}.yaml").model_copy(
                    update={"state_dir": Path(state) / site, **({} if policy is None else {"policy": policy})}
                )
                for site in about["sites"]
            }
            rows.append(row(f"{study.name} on {folder.name}, {name}", run(study, sites)))
    return rows


def main() -> None:
    """Compare, print and write."""
    logging.getLogger("consilium").setLevel(logging.ERROR)
    arguments = sys.argv[2:]
    if not arguments or len(arguments) % 2:
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
    rows = [line for study, folder in pairs for line in compared(Path(study), Path(folder))]
    lines = [
        f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 2), "---"], *rows)
    ]
    print("\n".join(lines))
    names = " ".join(f"{Path(study).name} {Path(folder).name}" for study, folder in pairs)
    load = os.getloadavg()[0]
    write_page(
        PAGE,
        "What the policy of a start-up kit costs an honest study",
        lines,
        f"python -m benchmarks kit_policy {names}",
        f"{os.cpu_count()} cores, load {load:.1f} at the end, one run each",
    )
