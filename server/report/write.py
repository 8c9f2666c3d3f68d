"""What a study leaves to be read: a line per round while it runs, a report when it is over.

The report is made from `rounds.jsonl`, `census.json`, `overlap.json`, `scores.json`, `intervals.json`,
`calibration.json`, `out_of_distribution.safetensors`, `status.json` and the study alone, so it can be written again, or
for a study that ended early.
`report.md` refers to two pictures by name; `report.html` says the same in one file, with more figures; `model-card.md`
is for Hugging Face's hub. Nothing is ever written outside the run's folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import StudyConfig
from common.files import write_atomically
from server.enrolment import census, overlap
from server.heads import outliers, record
from server.report import html, plots
from server.report.markdown import markdown, sections
from server.report.model_card import front_matter
from server.report.outcome import Ending, Outcome
from server.state import RoundState
from server.storage import calibration, history, intervals, last_scores, status

PAGE, CARD = "report.html", "model-card.md"


def append_round(run_dir: Path, state: RoundState, study: StudyConfig) -> None:
    """Record one round in `rounds.jsonl` and `scores.json`; recording it again replaces it. Raises StorageError."""
    history.append_round(run_dir, state, study.sites.evaluate)
    last_scores.keep(run_dir, state)
    intervals.keep(run_dir, state, study)


def write_report(
    run_dir: Path,
    study: StudyConfig,
    *,
    preprocessing: Mapping[str, Any] | None = None,
    synthetic: bool = False,
    start_from: Path | None = None,
    ending: Ending | None = None,
) -> Path:
    """Write report.md, its two pictures, report.html and model-card.md from what is on record; returns the first.

    `synthetic` puts a banner on all of them. `start_from` is the file with the first weights, if the operator gave
    one. `ending` is how the study ends; None takes it from its status. Raises StorageError.
    """
    rounds, now = history.read_rounds(run_dir), status.read_status(run_dir)
    if ending is None and now is not None and (now := now.or_died()).status not in ("starting", "running"):
        ending = Ending(now.status, now.reason)
    outcome = Outcome(
        study,
        rounds,
        preprocessing,
        synthetic,
        census=census.load(run_dir),
        overlap=overlap.load(run_dir),
        heads=record.read(run_dir),
        intervals=intervals.load(run_dir),
        calibration=calibration.load(run_dir),
        outliers=outliers.read(run_dir, study),
        ending=ending,
        absent={} if now is None else now.absent,
        resumed_after=() if now is None else now.resumed_after,
        start_from=None if start_from is None else start_from.name,
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    curves = plots.curves(outcome.curves, study.sites.evaluate, run_dir, synthetic=synthetic)
    write_atomically(run_dir / "curves.png", curves)
    if (final := outcome.final) is not None:
        matrix = plots.confusion(final, study.classes, run_dir, synthetic=synthetic)
        write_atomically(run_dir / "confusion.png", matrix)
    path = run_dir / "report.md"
    write_atomically(path, markdown(outcome).encode())
    write_atomically(run_dir / CARD, hub_card(outcome).encode())
    write_atomically(run_dir / PAGE, html.page(outcome, last_scores.load(run_dir), run_dir).encode())
    return path


def hub_card(outcome: Outcome) -> str:
    """The model card in Hugging Face's format: what the hub reads, then the sections that are about the model."""
    wanted = ("opening", "images", "model", "classes", "subgroups", "calibration", "outliers", "card")
    texts = [text for name, text in sections(outcome).items() if name in wanted]
    return front_matter(outcome) + "\n" + "\n\n".join([*texts, _USE]) + "\n"


_USE = (
    "## Use\n\n"
    "`consilium-site predict --study DIR IMAGE...` classifies images with the run's folder. `consilium-site export DIR "
    "--format onnx --out FILE` writes one file for other programs."
)
