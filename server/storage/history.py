"""History of the rounds, one JSON line per round: `rounds.jsonl`.

The line of round r holds the rows of its sites and the scores of the weights it started from, which are those
after round r - 1. Figures that the counts do not give are null, because NaN is not JSON. Confusion matrices are
in the file, score histograms are not (they are in the checkpoints).

A resumed study repeats its last rounds. So a round's line replaces an older line of the same round and all
later ones, and the file is the same as without the interruption.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import StorageError
from common.files import write_atomically
from common.metrics import NUM_BINS, Figures, Score, figures
from common.metrics.pooling import interval, total
from server.state import Best, RoundState, SiteRound

FILE = "rounds.jsonl"


@dataclass(frozen=True)
class Scored:
    """One row of a report: the figures of one site or of all."""

    figures: Figures
    accuracy_interval: tuple[float, float]
    """95 %, Wilson."""
    confusion_CC: tuple[tuple[int, ...], ...]
    num_bins: int = NUM_BINS
    """Bins that a site's policy rounds probabilities to, the fewest of the row's sites."""
    left_out_C: tuple[int, ...] = ()
    """Test images by class that a site's policy leaves out of its scores; empty: none."""


@dataclass(frozen=True)
class RoundRecord:
    """One line of the file."""

    round: int
    seconds: float
    attempts: int
    """Number of times the round's plans were sent."""
    closing: bool
    """Only scores the weights of the round before."""
    best: Best | None
    """So far; None if the study does not select."""
    sites: tuple[SiteRound, ...]
    model_after_round: int
    """The round after which the scored model stood."""
    pooled: Scored | None
    """Every site that scored; None if none did."""
    pooled_training: Scored | None
    """Without the sites that only score; None if that leaves all of them, or none."""
    scored: Mapping[str, Scored]


def append_round(run_dir: Path, state: RoundState, evaluate: Collection[str] = ()) -> None:
    """Add the line of one round; `evaluate` names the sites that only score.

    Raises StorageError; the lines before are then still there.
    """
    earlier = [line for number, line in _lines(run_dir) if number < state.round]
    record = json.dumps(_finite(_describe(state, evaluate)), ensure_ascii=False, allow_nan=False)
    write_atomically(run_dir / FILE, "".join(f"{line}\n" for line in [*earlier, record]).encode())


def read_rounds(run_dir: Path) -> tuple[RoundRecord, ...]:
    """Every round on record, first to last; empty without a file. Raises StorageError."""
    try:
        return tuple(_record(json.loads(line)) for _, line in _lines(run_dir))
    except (KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{run_dir / FILE} was written by another version ({type(error).__name__}: {error}); "
            "read it with that version"
        ) from error


def _lines(run_dir: Path) -> list[tuple[int, str]]:
    path = run_dir / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [(int(json.loads(line)["round"]), line) for line in lines if line.strip()]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{path} is not one round per line ({type(error).__name__}); move it away to go on without "
            "the rounds in it"
        ) from error


def _describe(state: RoundState, evaluate: Collection[str]) -> dict[str, Any]:
    scores = {site: state.scores[site] for site in sorted(state.scores)}
    training = {site: score for site, score in scores.items() if site not in evaluate}
    return {
        "round": state.round,
        "seconds": state.seconds,
        "attempts": state.attempts,
        "closing": state.closing,
        "best": None if state.best is None else asdict(state.best),
        "sites": [asdict(site) for site in state.sites],
        "scored": {
            "model_after_round": state.round - 1,
            "pooled": _describe_score(total(scores)) if scores else None,
            "pooled_training": _describe_score(total(training)) if 0 < len(training) < len(scores) else None,
            "sites": {site: _describe_score(score) for site, score in scores.items()},
        },
    }


def _describe_score(score: Score) -> dict[str, Any]:
    return asdict(figures(score)) | {
        "accuracy_interval": interval(int(np.trace(score.confusion_CC)), score.num_images),
        "confusion_CC": score.confusion_CC.tolist(),
        # Only where it says something: without it, lines of earlier versions stay as they are.
        **({} if score.num_bins == NUM_BINS else {"num_bins": score.num_bins}),
        **({"left_out_C": list(score.left_out_C)} if any(score.left_out_C) else {}),
    }


def _finite(value: Any) -> Any:
    """`value` with null for every number that JSON cannot hold."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
        case _:
            return value


def _record(line: Mapping[str, Any]) -> RoundRecord:
    scored = line["scored"]
    return RoundRecord(
        round=line["round"],
        seconds=line["seconds"],
        attempts=line["attempts"],
        closing=line["closing"],
        best=None if line["best"] is None else Best(**line["best"]),
        sites=tuple(SiteRound(**site) for site in line["sites"]),
        model_after_round=scored["model_after_round"],
        pooled=None if scored["pooled"] is None else _scored(scored["pooled"]),
        pooled_training=None if scored["pooled_training"] is None else _scored(scored["pooled_training"]),
        scored={site: _scored(figures_there) for site, figures_there in scored["sites"].items()},
    )


def _scored(there: Mapping[str, Any]) -> Scored:
    low, high = (_nan(end) for end in there["accuracy_interval"])
    return Scored(
        figures=Figures(**{field.name: _nan(there[field.name]) for field in fields(Figures)}),
        accuracy_interval=(low, high),
        confusion_CC=tuple(map(tuple, there["confusion_CC"])),
        num_bins=there.get("num_bins", NUM_BINS),
        left_out_C=tuple(there.get("left_out_C", ())),
    )


def _nan(value: Any) -> Any:
    """Undo `_finite` in a figure."""
    if isinstance(value, list):
        return tuple(_nan(inner) for inner in value)
    return math.nan if value is None else value
