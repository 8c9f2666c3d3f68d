"""Counts of the models that a report is about, mostly with all sites added up: `scores.json`.

`rounds.jsonl` has no score histograms, as a line of it would then be a hundred times as long. A report needs those of
two or three models for its ROC and reliability curves: the last one and the best one on validation images, and the one
on test images. Of the newest scores it also has each site's histograms, as the bins that hold images, for curves by
site. Beyond a number of sites, which no chart could show, it has none, so the file does not grow with the federation.

A resumed study repeats rounds. So the scores of a round replace those of the same and of later ones.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_serializer, model_validator

from common.config.types import ScoredSide
from common.files import read_json, write_atomically
from common.metrics import NUM_BINS, Score
from common.metrics.pooling import total
from common.settings import Frozen
from server.state import RoundState

FILE = "scores.json"


MOST_SITES = 30
"""Sites whose own histograms are kept."""


class SiteHistograms(Frozen):
    """Score histograms of one site: what is not zero of an array (classes, 2, bins), counted in one row."""

    places: tuple[Annotated[int, Field(ge=0)], ...]
    counts: tuple[Annotated[int, Field(ge=1)], ...]

    @model_validator(mode="after")
    def _one_count_a_place(self) -> Self:
        if len(self.places) != len(self.counts):
            raise ValueError(
                f"found {len(self.counts)} counts for {len(self.places)} bins, expected one each"
            )
        return self

    def of(self, num_classes: int) -> npt.NDArray[np.int64]:
        """The array."""
        flat = np.zeros(num_classes * 2 * NUM_BINS, np.int64)
        flat[list(self.places)] = self.counts
        return flat.reshape(num_classes, 2, NUM_BINS)


class PooledScore(Frozen):
    """The counts of one model on one side of every site's split."""

    side: ScoredSide
    after_round: Annotated[int, Field(ge=0)]
    """The round after which the scored model stood."""
    sites: tuple[str, ...]
    """Sites whose counts are in it, in the order of names."""
    score: Score
    by_site: dict[str, SiteHistograms] = {}  # noqa: RUF012  (pydantic copies it)
    """Each site's own histograms. Empty: not kept, or of a single site."""

    @field_serializer("score")
    def _with_any_loss(self, score: Score) -> dict[str, Any]:
        """JSON has no number for the loss of weights that diverged; its name is read back as one."""
        loss = score.loss_sum
        return score.model_dump() | {"loss_sum": loss if math.isfinite(loss) else str(loss)}


class LastScores(Frozen):
    """What the file holds."""

    models: tuple[PooledScore, ...] = ()

    def of(self, side: ScoredSide, after_round: int) -> PooledScore | None:
        """The counts of one model; None if they are not kept."""
        return next(
            (one for one in self.models if one.side == side and one.after_round == after_round),
            None,
        )


def keep(run_dir: Path, state: RoundState) -> None:
    """Add the scores of a round, and drop those that no report needs any more. Raises StorageError."""
    after = state.round - 1
    tested = after if state.chosen is None else state.chosen.round
    best = None if state.best is None else state.best.round
    new = [
        *_pooled("validation", after, state.scores),
        *_pooled("test", tested, state.test_scores),
    ]
    earlier = [
        one.model_copy(update={"by_site": {}})
        for one in load(run_dir).models
        if one.side == "validation" and one.after_round < after and one.after_round in (best, tested)
    ]
    content = LastScores(models=(*earlier, *new)).model_dump_json()
    write_atomically(run_dir / FILE, content.encode())


def load(run_dir: Path) -> LastScores:
    """The scores on record; none without a file. Raises StorageError."""
    return read_json(run_dir / FILE, LastScores) or LastScores()


def _pooled(side: ScoredSide, after_round: int, scores: Mapping[str, Score]) -> list[PooledScore]:
    counted = {site: score for site, score in sorted(scores.items()) if score.num_images}
    if not counted:
        return []
    by_site = {site: _sparse(score) for site, score in counted.items()}
    return [
        PooledScore(
            side=side,
            after_round=after_round,
            sites=tuple(counted),
            score=total(counted),
            by_site=by_site if 1 < len(counted) <= MOST_SITES else {},
        )
    ]


def _sparse(score: Score) -> SiteHistograms:
    flat = score.histogram_C2B.ravel()
    places = np.flatnonzero(flat)
    return SiteHistograms(places=tuple(places.tolist()), counts=tuple(flat[places].tolist()))
