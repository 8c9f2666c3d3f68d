"""Grids of studies: one base, named variants, one table and one picture to compare them.

A comparison is only as honest as what its rows share. So a variant states what it changes
and nothing else, every variant is tested on the same images (the sites' own split), and a
run that did not finish is a row that says so, never a gap.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from common import log
from common.config import Name, StudyConfig
from common.errors import LaunchError
from common.settings import Frozen, load_settings, validate_settings
from server.report.comparison import Row, write_comparison
from server.simulation.simulate import load_federation, run_study
from server.storage.history import read_rounds
from server.storage.status import INCOMPLETE, read_status


class Grid(Frozen):
    """Studies that differ only in what their variant says."""

    name: Name
    """Of the grid and of its folder under runs/."""
    study: dict[str, Any]
    """The base: a study without its name."""
    variants: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    """Settings that replace the base's, by name of the variant; a mapping is merged, one with
    a `kind` replaces the base's whole."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Every variant is run once with each seed."""


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


def run_grid(
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
        failure, lacking = None, ""
        if _has_finished(run_dir, study):
            log.event(f"{study.name} has finished before; it is kept")
        else:
            try:
                if _is_incomplete(run_dir, study):
                    outcome = run_study(study, sites_dir, federation, run_dir, resume=True)
                else:
                    outcome = run_study(study, sites_dir, federation, run_dir)
                failure = None if outcome.finished or outcome.incomplete else outcome.reason
                lacking = outcome.reason if outcome.incomplete else ""
            except LaunchError as error:
                failure = str(error)
        rounds = read_rounds(run_dir) if run_dir.exists() else ()
        rows.append(Row(variant, seed, rounds, failure, run_dir, lacking))
    write_comparison(folder, rows, federation)
    return folder, tuple(rows)


def _has_finished(run_dir: Path, study: StudyConfig) -> bool:
    """True if the closing evaluation of this very study is on record, and its status says no other thing.

    A study may still fail after it, or be incomplete.
    """
    now, rounds = read_status(run_dir), read_rounds(run_dir)
    over = now is None or now.status == "finished"
    return over and _is_of(run_dir, study) and bool(rounds) and rounds[-1].closing


def _is_incomplete(run_dir: Path, study: StudyConfig) -> bool:
    """True if only the closing evaluation of this very study is to be repeated."""
    now = read_status(run_dir)
    return now is not None and now.status == INCOMPLETE and _is_of(run_dir, study)


def _is_of(run_dir: Path, study: StudyConfig) -> bool:
    settings = run_dir / "study.yaml"
    return settings.exists() and load_settings(settings, StudyConfig, "study") == study


def _run_name(variant: str, seed: int, seeds: tuple[int, ...]) -> str:
    return variant if len(seeds) == 1 else f"{variant}-seed{seed}"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        former = merged.get(key)
        part = isinstance(value, dict) and isinstance(former, dict) and "kind" not in value
        merged[key] = _merged(former or {}, value) if part else value
    return merged
