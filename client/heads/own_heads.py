"""A site's features and its own heads on them: what the steps towards heads have in common."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.data.manifest import Side
from client.heads import sums, worker
from client.heads.features import Features
from client.heads.worker import HeadUnavailable, Job
from common import log, seeds, wire
from common.config.heads import LocalHead, Vote
from common.config.types import ScoredSide
from common.errors import PolicyRefusal
from common.heads import Floats, View
from common.heads.result import HeadResult
from common.metrics import Score
from common.weights import Array, Arrays, digest

HEADS = "heads"
"""Folder, in the study's, where a site keeps its own heads."""
_MAPS_KEPT = 4


@dataclass
class FeatureTable:
    """Features under one set of weights, with a small cache of mapped training features."""

    weights_digest: str
    sides: Mapping[Side, Features]
    _maps: dict[str, Floats] = field(default_factory=dict)

    def mapped(self, view: View) -> Floats:
        """Training features on a view; a search asks for the same one many times."""
        key = f"{digest(view.arrays())} {view.fourier}"
        if key not in self._maps:
            while len(self._maps) >= _MAPS_KEPT:
                del self._maps[next(iter(self._maps))]
            self._maps[key] = view.of(self.sides["train"].features_NF)
        return self._maps[key]


@dataclass(frozen=True)
class Place:
    """Folders and limits of the site that a step needs."""

    state_dir: Path
    folder: Path
    """Of this study, where heads are kept."""
    threads: int
    min_cell: int | None
    num_bins: int | None = None
    """Bins that the probabilities of a score are rounded to."""
    min_score_cell: int | None = None
    max_patient_share: float | None = None
    """Largest share of one patient in the length of a class's features."""
    heads_may_leave: Collection[str] = ()
    """Kinds of own heads that may travel to other sites."""
    counts_outliers: bool = True
    """Whether counts of validation images by outlier score may leave."""
    noisy_counts: Sequence[int] | None = None
    """Training images by class, with noise, in a study with privacy."""
    noisy_sums: Callable[[Features], Arrays] | None = None
    """What is sent of training features in a study with privacy."""
    noisy_scores: Callable[[Mapping[str, Floats], Features], Mapping[str, Score]] | None = None
    """Scores of test images by head, from the probabilities that each gives, in a study with privacy that pays."""
    epsilon: Callable[[], float] | None = None
    """What a study with privacy has cost so far."""


def require_many(mapped_ND: Floats, train: Features, most: float | None) -> None:
    """Raise PolicyRefusal if one patient's features are most of a class's sum."""
    if most is not None and sums.largest_share(mapped_ND, train.labels_N, train.groups_N) > most:
        raise PolicyRefusal(
            f"one patient's features are more than {most:.0%} of a class's sum",
            reason="max_patient_share: a sum of features would be of too few patients",
        )


def fit(
    config: LocalHead | Vote,
    train_ND: Array,
    table: FeatureTable,
    plan: wire.HeadPlan,
    place: Place,
    scored: ScoredSide = "validation",
) -> Mapping[str, Array]:
    """The fitted head; of a local one the probabilities of the images on the side that is scored."""
    train, study = table.sides["train"], plan.study
    keep = None if isinstance(config, Vote) else place.folder / HEADS / f"local.{config.title}"
    label = {
        "title": f"local.{config.title}",
        "study": study.name,
        "study_fingerprint": study.fingerprint,
        "classes": study.classes,
        "layer": None if study.heads is None else study.heads.layer,
        "weights_digest": table.weights_digest,
        "num_features": train_ND.shape[1],
    }
    job = Job(
        config=config,
        num_classes=len(study.classes),
        seed=seeds.derive(study.seed, plan.site, "heads", config.title) % 2**32,
        threads=place.threads,
        label=None if keep is None else label,
        travels=not isinstance(config, Vote) and config.travels,
    )
    started = time.monotonic()
    chosen_on = table.sides["validation"]
    result = worker.run(
        job, train_ND, train.labels_N, train.groups_N, table.sides[scored].features_NF,
        validation=(chosen_on.features_NF, chosen_on.labels_N), state_dir=place.state_dir, keep=keep,
    )  # fmt: skip
    log.event(f"fitted {config.title} on {len(train_ND)} images in {time.monotonic() - started:.1f} s")
    return result


def unavailable(title: str, error: HeadUnavailable) -> HeadResult:
    """The result of a head that could not be fitted; the site's own log says why."""
    log.warn(f"head {title} could not be fitted: {error}")
    return HeadResult(title=title, problem=error.problem)
