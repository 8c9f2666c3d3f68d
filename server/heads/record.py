"""Record of a study's heads: `heads.json` in the run's folder, and the fitted heads beside it.

Figures are computed once from counts that add up: a pooled gain is that of all training sites' test images
together, with an interval over all their groups. A head is saved as arrays, with a label that names its
weights, layer and classes. It contains no code that could run.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from common.config import StudyConfig
from common.config.heads import SOFTMAX
from common.errors import StorageError
from common.files import write_atomically
from common.heads import FittedHead
from common.heads.result import HeadResult
from common.metrics import figures
from common.metrics.paired import gain
from common.settings import to_yaml
from common.weights import digest, save_file
from server.state import RoundState

FILE, FOLDER, CSV = "heads.json", "heads", "heads.csv"
POOLED = "pooled, training sites"


@dataclass(frozen=True)
class HeadsRecord:
    """The heads of one set of weights, scored."""

    round: int
    """Round after which these weights stood."""
    results: Mapping[str, tuple[HeadResult, ...]]
    """By site."""
    problems: Mapping[str, str]
    """By site that had no part in a step: the last such step, and why."""
    lacking: Mapping[str, str]
    """By federated head that could not be fitted, and by head that was to travel and did not: why."""
    num_messages: int
    """Messages to each site."""
    mib: float = 0.0
    """Size of the heads, as they are sent to be scored."""
    epsilons: Mapping[str, float] = field(default_factory=dict)
    """By site, with privacy: what the study had cost its patients once they were done."""
    together: tuple[str, ...] = ()
    """Under masks: the sites that the results are of. There is then one row of results, `POOLED`."""


@dataclass(frozen=True)
class Cell:
    """Figures of one head at one site, as shares; None where the counts do not give one."""

    num_images: int
    accuracy: float | None
    balanced_accuracy: float | None
    auroc: float | None
    gain: float | None = None
    """Gain in balanced accuracy over the softmax on the same images; None for the softmax itself."""
    gain_low: float | None = None
    gain_high: float | None = None
    mcnemar_p: float | None = None
    problem: str = ""
    precision_weighted: float | None = None
    recall_weighted: float | None = None
    f1_weighted: float | None = None
    avg_acc_bacc_pre_rec_f1: float | None = None
    """The paper's AVG, likely reading; see `common/metrics/figures.py`."""
    avg_acc_bacc_pre_rec_f1_auroc: float | None = None


@dataclass(frozen=True)
class HeadTable:
    """Table of heads (rows) and sites (columns) for the last weights that heads were fitted on."""

    round: int
    cells: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    """By site, then by head."""
    problems: Mapping[str, str] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)
    num_messages: int = 0
    epsilons: Mapping[str, float] = field(default_factory=dict)
    together: Sequence[str] = ()


def cells(record: HeadsRecord, study: StudyConfig) -> dict[str, dict[str, Cell]]:
    """Figures of every head at every site, and pooled over the sites that train if there are several."""
    named = {site: _named(results, study) for site, results in record.results.items()}
    table = {
        site: {title: _cell([result]) for title, result in by_title.items()}
        for site, by_title in named.items()
    }
    training = [site for site in study.sites.train if site in record.results]
    if len(training) > 1:
        pooled: dict[str, list[HeadResult]] = {}
        for site in sorted(training):
            for title, result in named[site].items():
                pooled.setdefault(title, []).append(result)
        table[POOLED] = {
            title: _cell(results)
            for title, results in pooled.items()
            if len(results) == len(training) and all(result.score is not None for result in results)
        }
    return table


def _named(results: Sequence[HeadResult], study: StudyConfig) -> dict[str, HeadResult]:
    """Results by title. The heads of a single training site need no `@SITE`: at home and elsewhere they are one row."""
    if len(study.sites.train) > 1:
        return {result.title: result for result in results}
    named: dict[str, HeadResult] = {}
    for result in results:
        named.setdefault(result.title.partition("@")[0], result)
    return named


def _cell(results: Sequence[HeadResult]) -> Cell:
    scores = [result.score for result in results if result.score is not None]
    if len(scores) < len(results):
        return Cell(0, None, None, None, problem=str(results[0].problem or "no score"))
    f = figures(reduce(add, scores))
    cell = Cell(
        num_images=f.num_images,
        accuracy=_known(f.accuracy),
        balanced_accuracy=_known(f.balanced_accuracy),
        auroc=_known(f.auroc_macro),
        precision_weighted=_known(f.precision_weighted),
        recall_weighted=_known(f.recall_weighted),
        f1_weighted=_known(f.f1_weighted),
        avg_acc_bacc_pre_rec_f1=_known(f.avg_acc_bacc_pre_rec_f1),
        avg_acc_bacc_pre_rec_f1_auroc=_known(f.avg_acc_bacc_pre_rec_f1_auroc),
    )
    pairs = [result.paired for result in results if result.paired is not None]
    if len(pairs) < len(results) or f.num_images == 0:
        return cell
    better = gain(reduce(add, pairs))
    # One site has resampled its groups itself; over several sites the interval is from the sums.
    low, high = results[0].interval if len(results) == 1 and results[0].interval else better.interval
    return replace(
        cell,
        gain=_known(better.balanced_accuracy),
        gain_low=_known(low),
        gain_high=_known(high),
        mcnemar_p=_known(better.mcnemar_p),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


# --- on disk ---------------------------------------------------------------------------------


def keep(
    run_dir: Path, record: HeadsRecord, heads: Sequence[FittedHead], study: StudyConfig, state: RoundState
) -> None:
    """Write `heads.json`, `heads.csv` and `heads/TITLE.safetensors`. Raises StorageError.

    Heads of an earlier round are replaced, so the folder holds those of the last weights.
    """
    folder = run_dir / FOLDER
    for old in sorted(folder.glob("*.safetensors")):
        old.unlink()
    for head in heads:
        label = {
            "head": head.form.model_dump_json(),
            "study": study.name,
            "study_fingerprint": study.fingerprint,
            "classes": json.dumps(study.classes),
            "layer": json.dumps(None if study.heads is None else study.heads.layer),
            "weights_sha256": digest(state.weights),
            "round": str(record.round),
        }
        save_file(folder / f"{head.form.title}.safetensors", head.arrays(), label)
    if heads and not (run_dir / "study.yaml").exists():
        write_atomically(run_dir / "study.yaml", to_yaml(study.model_dump(mode="json")))
    found = cells(record, study)
    write_atomically(run_dir / CSV, _csv(found).encode())
    table = {
        "round": record.round,
        "cells": {s: {t: vars(c) for t, c in row.items()} for s, row in found.items()},
        "problems": dict(record.problems),
        "lacking": dict(record.lacking),
        "num_messages": record.num_messages,
    }
    if record.together:
        table["together"] = list(record.together)
    if record.epsilons:
        table["epsilons"] = dict(record.epsilons)
    earlier = [entry for entry in _entries(run_dir) if entry["round"] < record.round]
    text = json.dumps([*earlier, table], indent=1, allow_nan=False)
    write_atomically(run_dir / FILE, text.encode())


def _csv(found: Mapping[str, Mapping[str, Cell]]) -> str:
    """A line a site and head, every figure as a share; empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = [one.name for one in fields(Cell)]
    writer.writerow(["site", "head", *names])
    for site, row in found.items():
        for title, cell in row.items():
            writer.writerow([site, title, *(getattr(cell, name) for name in names)])
    return text.getvalue()


def read(run_dir: Path) -> HeadTable | None:
    """The last table on record, None if the study has no heads. Raises StorageError."""
    entries = _entries(run_dir)
    if not entries:
        return None
    try:
        last = entries[-1]
        rows = {s: {t: Cell(**c) for t, c in row.items()} for s, row in last["cells"].items()}
        return HeadTable(**{**last, "cells": rows})
    except (KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{run_dir / FILE} was written by another version ({type(error).__name__})"
        ) from error


def _entries(run_dir: Path) -> list[Any]:
    path = run_dir / FILE
    try:
        entries: list[Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is damaged ({type(error).__name__}); move it away") from error
    return entries


# --- for the report ----------------------------------------------------------------------------


def titles(table: HeadTable) -> list[str]:
    """Heads in the order of the study, the softmax first."""
    order = dict.fromkeys(title for row in table.cells.values() for title in row)
    return [SOFTMAX, *(title for title in order if title != SOFTMAX), *table.lacking]
