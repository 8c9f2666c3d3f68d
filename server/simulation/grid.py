"""Grids of studies: one base, named variants, one table and one picture to compare them.

A comparison is only as honest as what its rows share. So a variant states what it changes
and nothing else, every variant is tested on the same images (the sites' own split), and a
run that did not finish is a row that says so, never a gap.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from common import log
from common.config import Name, StudyConfig
from common.errors import LaunchError
from common.settings import Frozen, load_settings, validate_settings
from common.weights import write_atomically
from server.report import plots
from server.simulation.simulate import Federation, load_federation, run_study
from server.storage.history import RoundRecord, read_rounds


class Grid(Frozen):
    """Studies that differ only in what their variant says."""

    name: Name
    study: dict[str, Any]
    """The base: a study without its name."""
    variants: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    """Settings that replace the base's, by name of the variant; a mapping is merged, one with
    a `kind` replaces the base's whole."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Every variant is run once with each."""


@dataclass(frozen=True)
class Row:
    """One finished or failed run."""

    variant: str
    seed: int
    rounds: tuple[RoundRecord, ...]
    failure: str | None
    run_dir: Path


def studies(grid: Grid, name: str) -> dict[tuple[str, int], StudyConfig]:
    """Every study of the grid by variant and seed. Raises ConfigError that names the variant."""
    return {
        (variant, seed): validate_settings(
            _merged(grid.study, changes) | {"name": _run_name(variant, seed, grid.seeds), "seed": seed},
            StudyConfig,
            "study",
            f"{name}, variant {variant}",
        )
        for seed in grid.seeds
        for variant, changes in grid.variants.items()
    }


def run_grid(grid_file: Path, sites_dir: Path, runs: Path, only: tuple[str, ...] = ()) -> bool:
    """`run_variants` for the command line; returns whether all have finished."""
    _, rows = run_variants(grid_file, sites_dir, runs, only)
    return all(row.failure is None for row in rows)


def run_variants(
    grid_file: Path, sites_dir: Path, runs: Path, only: tuple[str, ...] = ()
) -> tuple[Path, tuple[Row, ...]]:
    """Run every study of the grid that has not finished yet; returns the folder and a row per study.

    Writes RUNS/NAME/comparison.md, .csv and .png. A run of the same study that finished
    earlier is kept, so an interrupted grid goes on where it stopped.
    """
    grid = load_settings(grid_file, Grid, "grid")
    federation = load_federation(sites_dir)
    folder = runs / grid.name
    rows = []
    for (variant, seed), study in studies(grid, grid_file.name).items():
        if only and variant not in only:
            continue
        run_dir = folder / study.name
        failure = None
        if _has_finished(run_dir, study):
            log.event(f"{study.name} has finished before; it is kept")
        else:
            try:
                outcome = run_study(study, sites_dir, federation, run_dir)
                failure = None if outcome.finished else outcome.reason
            except LaunchError as error:
                failure = str(error)
        rows.append(Row(variant, seed, read_rounds(run_dir) if run_dir.exists() else (), failure, run_dir))
    write_comparison(folder, rows, federation)
    return folder, tuple(rows)


def write_comparison(folder: Path, rows: list[Row], federation: Federation) -> None:
    """One table and one picture over all runs."""
    table = [figures_of(row) for row in rows]
    columns = list(dict.fromkeys(name for line in table for name in line))
    banner = (
        ["**SYNTHETIC images: the figures say nothing about medicine.**", ""] if federation.synthetic else []
    )
    lines = [
        *banner,
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(_cell(line.get(column, "")) for column in columns) + " |" for line in table),
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(table)
    write_atomically(folder / "comparison.md", ("\n".join(lines) + "\n").encode())
    write_atomically(folder / "comparison.csv", text.getvalue().encode())
    curves = {
        f"{row.variant}, seed {row.seed}": [
            (record.model_after_round, record.pooled.figures.balanced_accuracy)
            for record in row.rounds
            # only rounds in which every site scored: a mean over fewer images is another figure
            if record.pooled is not None and record.scored.keys() == row.rounds[-1].scored.keys()
        ]
        for row in rows
    }
    picture = plots.comparison(curves, folder, synthetic=federation.synthetic)
    write_atomically(folder / "comparison.png", picture)


def _cell(text: str) -> str:
    """`text` within a table: a failure may quote the lines of a log."""
    return " ".join(text.split()).replace("|", "\\|")


def figures_of(row: Row) -> dict[str, str]:
    """One line of the table: the final weights, pooled and balanced accuracy by site."""
    line = {"variant": row.variant, "seed": str(row.seed)}
    if row.failure is not None or not row.rounds or row.rounds[-1].pooled is None:
        return line | {"outcome": f"failed: {row.failure or 'no scores'}"}
    last = row.rounds[-1]
    pooled = row.rounds[-1].pooled.figures
    return (
        line
        | {
            "outcome": "finished",
            "rounds": str(last.model_after_round),
            "balanced accuracy": f"{pooled.balanced_accuracy:.3f}",
            "weighted F1": f"{pooled.f1_weighted:.3f}",
            "accuracy": f"{pooled.accuracy:.3f}",
            "AUROC": f"{pooled.auroc_macro:.3f}",
            "AVG of ACC BACC PRE REC F1": f"{pooled.avg_acc_bacc_pre_rec_f1:.3f}",
            "AVG with AUROC": f"{pooled.avg_acc_bacc_pre_rec_f1_auroc:.3f}",
        }
        | {
            f"balanced accuracy {site}": f"{scored.figures.balanced_accuracy:.3f}"
            for site, scored in last.scored.items()
            if scored.figures.num_images
        }
        | {"minutes": f"{sum(record.seconds for record in row.rounds) / 60:.1f}"}
    )


def _has_finished(run_dir: Path, study: StudyConfig) -> bool:
    """True if the closing evaluation of this very study is on record."""
    if not (run_dir / "study.yaml").exists():
        return False
    rounds = read_rounds(run_dir)
    same = load_settings(run_dir / "study.yaml", StudyConfig, "study") == study
    return same and bool(rounds) and rounds[-1].closing


def _run_name(variant: str, seed: int, seeds: tuple[int, ...]) -> str:
    return variant if len(seeds) == 1 else f"{variant}-seed{seed}"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        former = merged.get(key)
        part = isinstance(value, dict) and isinstance(former, dict) and "kind" not in value
        merged[key] = _merged(former or {}, value) if part else value
    return merged
