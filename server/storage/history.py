"""History of the rounds, one JSON line per round: `rounds.jsonl`.

The line of round r holds the rows of its sites and the scores of the weights it started from, which are those
after round r - 1, on validation images. The line of the closing evaluation also holds the scores of the chosen weights
on test images. Lines of versions without validation images have scores on test images alone. Figures that the counts
do not give are null, because NaN is not JSON. Confusion matrices are in the file, score histograms are not (they are in
the checkpoints).

A resumed study repeats its last rounds. So a round's line replaces an older line of the same round and all
later ones, and the file is the same as without the interruption.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from common.config import OwnModel
from common.config.types import ScoredSide
from common.errors import StorageError
from common.files import write_atomically
from common.metrics import NUM_BINS, Figures, Score, figures
from common.metrics.pooling import POOLED, interval, total
from server.state import Best, RoundState, SiteRound
from server.storage import subgroup_scores
from server.storage.subgroup_scores import SubgroupScores

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
class ScoredModel:
    """Scores of one model on one side of the sites' splits."""

    side: ScoredSide
    after_round: int
    """The round after which the scored model stood."""
    pooled: Scored
    """Every site that scored."""
    pooled_training: Scored | None
    """Without the sites that only score; None if that leaves all of them, or none."""
    sites: Mapping[str, Scored]
    pooled_only: tuple[str, ...] = ()
    """Sites whose masked scores are in `pooled`, and whose own figures are known at each alone."""


@dataclass(frozen=True)
class RoundRecord:
    """One line of the file."""

    round: int
    seconds: float
    attempts: int
    """Number of times the round's plans were sent."""
    closing: bool
    """Only scores: the weights of the round before, and those that were chosen."""
    best: Best | None
    """So far; None if the study does not select."""
    sites: tuple[SiteRound, ...]
    validation: ScoredModel | None
    """None: no site scored validation images."""
    test: ScoredModel | None
    """None: no site scored test images."""
    own: Mapping[OwnModel, ScoredModel] = field(default_factory=dict)
    """Models of the sites' own on test images, in the closing evaluation of a study that has some."""
    subgroups: Mapping[str, SubgroupScores] = field(default_factory=dict)
    """By attribute: the test in the closing evaluation, of a study that asks for it."""

    def on(self, side: ScoredSide) -> ScoredModel | None:
        """The scores on one side."""
        return self.validation if side == "validation" else self.test


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


def curves(rounds: Sequence[RoundRecord], side: ScoredSide) -> tuple[ScoredModel, ...]:
    """The models over the rounds, scored on one side; of earlier versions, which had one side, on test images."""
    on_side = [model for record in rounds if (model := record.on(side)) is not None]
    others = [record.test for record in rounds if record.test is not None and not record.closing]
    models = (
        on_side if on_side or not others else [record.test for record in rounds if record.test is not None]
    )
    by_round = {model.after_round: model for model in models}  # the closing test may be of an earlier round
    return tuple(by_round[number] for number in sorted(by_round))


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
    after = state.round - 1
    tested_after = after if state.chosen is None else state.chosen.round
    return {
        "round": state.round,
        "seconds": state.seconds,
        "attempts": state.attempts,
        "closing": state.closing,
        "best": None if state.best is None else asdict(state.best),
        "sites": [asdict(site) for site in state.sites],
        "validation": _describe_model(state.scores, after, evaluate, state.sites),
        "test": _describe_model(state.test_scores, tested_after, evaluate, state.sites),
        **({"own": own} if (own := _describe_own(state, tested_after)) else {}),
        **({"subgroups": subgroup_scores.describe(state)} if state.subgroups else {}),
    }


def _describe_own(state: RoundState, after_round: int) -> dict[str, Any]:
    """By model of a site's own: its scores on test images."""
    described = {name: _describe_model(scores, after_round, ()) for name, scores in state.own_scores.items()}
    return {name: model for name, model in described.items() if model is not None}


def _describe_model(
    scores_by_site: Mapping[str, Score],
    after_round: int,
    evaluate: Collection[str],
    rows: Sequence[SiteRound] = (),
) -> dict[str, Any] | None:
    # A site without images on this side has no row.
    scores = {site: score for site, score in sorted(scores_by_site.items()) if any(score.images_C)}
    if not scores:
        return None
    training = {site: score for site, score in scores.items() if site not in evaluate}
    return {
        "model_after_round": after_round,
        "pooled": _describe_score(total(scores)),
        "pooled_training": _describe_score(total(training)) if 0 < len(training) < len(scores) else None,
        "sites": {site: _describe_score(score) for site, score in scores.items() if site != POOLED},
        # Only where it says something: without it, lines of other studies stay as they are.
        **({"pooled_only": [r.site for r in rows if r.outcome == "ok"]} if POOLED in scores else {}),
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
    earlier = line.get("scored")  # of a version that scored test images in every round
    return RoundRecord(
        round=line["round"],
        seconds=line["seconds"],
        attempts=line["attempts"],
        closing=line["closing"],
        best=None if line["best"] is None else Best(**line["best"]),
        sites=tuple(SiteRound(**site) for site in line["sites"]),
        validation=None if earlier is not None else _model("validation", line["validation"]),
        test=_model("test", earlier if earlier is not None else line["test"]),
        own={
            name: model
            for name, there in line.get("own", {}).items()
            if (model := _model("test", there)) is not None
        },
        subgroups=subgroup_scores.read(line.get("subgroups", {})),
    )


def _model(side: ScoredSide, there: Mapping[str, Any] | None) -> ScoredModel | None:
    if there is None or there["pooled"] is None:
        return None
    training = there["pooled_training"]
    return ScoredModel(
        side=side,
        after_round=there["model_after_round"],
        pooled=_scored(there["pooled"]),
        pooled_training=None if training is None else _scored(training),
        sites={site: _scored(figures_there) for site, figures_there in there["sites"].items()},
        pooled_only=tuple(there.get("pooled_only", ())),
    )


def _scored(there: Mapping[str, Any]) -> Scored:
    low, high = (_nan(end) for end in there["accuracy_interval"])
    return Scored(
        figures=Figures(**{one.name: _nan(there[one.name]) for one in fields(Figures)}),
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
