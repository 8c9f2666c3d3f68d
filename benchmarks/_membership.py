"""Membership inference: how sure a model is of a candidate, what shadow models say of that, and how often it is right.

The likelihood ratio attack (LiRA, Carlini et al. 2022, arXiv:2112.03570): models of the same kind are trained on random
halves of the candidates. For each candidate the confidences of models with it and without it are two normal
distributions, and the attacked model's confidence is more likely under one of them. Every model is attacked in turn;
the others are its shadow models (section IV of the paper). M models, C candidates, N images.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score, roc_curve

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_LEAST_SPREAD = 1e-6
"""Standard deviation that a candidate's shadow models have at least, so that equal ones divide by no zero."""


def confidences(logits_NC: npt.NDArray[np.floating], labels_N: npt.NDArray[np.int64]) -> Floats:
    """log(p / (1 - p)) of the true class' probability p, from logits; close to normal over models (section VI-A)."""
    logits_NC = logits_NC.astype(np.float64)
    rows_N = np.arange(len(labels_N))
    own_N = logits_NC[rows_N, labels_N]
    logits_NC[rows_N, labels_N] = -np.inf
    odds_N: Floats = own_N - np.logaddexp.reduce(logits_NC, axis=1)
    return odds_N


def log_probabilities(confidences_N: Floats) -> Floats:
    """log p of a confidence: minus the cross-entropy, by whose height Yeom et al. 2018 (arXiv:1709.01604) decide."""
    logs_N: Floats = -np.logaddexp(0, -confidences_N)
    return logs_N


def halves(models: int, candidates: int, random: np.random.Generator) -> Flags:
    """Which model trains on which candidate, M x C: each candidate is in half of the models, rounded down."""
    drawn_MC: Flags = random.random((models, candidates)).argsort(axis=0) < models // 2
    return drawn_MC


def online(seen_MC: Floats, inside_MC: Flags) -> Floats:
    """Log likelihood ratio of "trained on it" and "not", for each model by all others (equation 4)."""
    return np.stack(
        [
            _log_density(seen_MC[model], *_normal(seen_MC, with_MC))
            - _log_density(seen_MC[model], *_normal(seen_MC, without_MC))
            for model, with_MC, without_MC in _each(inside_MC)
        ]
    )


def offline(seen_MC: Floats, inside_MC: Flags) -> Floats:
    """Standard deviations above models without the candidate: an attacker who trains none with it.

    The paper's score (section IV-C) is the chance that such a model is less sure, which has the same order.
    """
    scores = []
    for model, _, without_MC in _each(inside_MC):
        mean_C, spread_C = _normal(seen_MC, without_MC)
        scores.append((seen_MC[model] - mean_C) / spread_C)
    return np.stack(scores)


def _each(inside_MC: Flags) -> Iterator[tuple[int, Flags, Flags]]:
    """Each model, with its shadow models that trained on a candidate, and those that did not.

    The attacked model is missing among those of its own kind, so the number of shadow models would tell which kind that
    is: distributions of fewer values are wider. So the next model of the other kind is left out as well. Raises
    ValueError for too few models.
    """
    fewest = min(inside_MC.sum(axis=0).min(), (~inside_MC).sum(axis=0).min())
    if fewest < 3:
        raise ValueError(
            f"a candidate is in, or out of, {fewest} models; three are needed, two and the attacked one: train more"
        )
    num_models, num_candidates = inside_MC.shape
    for model in range(num_models):
        following_MC = np.roll(inside_MC, -model, axis=0)  # the attacked one is first
        next_C = (model + (following_MC != inside_MC[model]).argmax(axis=0)) % num_models
        used_MC = np.ones_like(inside_MC)
        used_MC[model] = used_MC[next_C, np.arange(num_candidates)] = False
        yield model, inside_MC & used_MC, ~inside_MC & used_MC


def _normal(seen_MC: Floats, which_MC: Flags) -> tuple[Floats, Floats]:
    """Mean and standard deviation by candidate over the models that `which_MC` names."""
    held_MC = np.where(which_MC, seen_MC, np.nan)
    spread_C: Floats = np.nanstd(held_MC, axis=0, ddof=1)
    mean_C: Floats = np.nanmean(held_MC, axis=0)
    return mean_C, np.maximum(spread_C, _LEAST_SPREAD)


def _log_density(value_C: Floats, mean_C: Floats, spread_C: Floats) -> Floats:
    """Of a normal distribution, but for the constant, which a ratio does not have."""
    density_C: Floats = -np.log(spread_C) - ((value_C - mean_C) / spread_C) ** 2 / 2
    return density_C


# --- how often an attack is right ----------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Figures of one attack over all models and candidates, one threshold for all."""

    auroc: float
    advantage: float
    """Largest difference of hits and false alarms over the thresholds."""
    hits: dict[float, float | None]
    """Share of members that are found, by the share of others that may be taken for members."""


def outcome(scores_MC: Floats, inside_MC: Flags, false_alarms: tuple[float, ...] = (0.01, 0.001)) -> Outcome:
    """Higher scores speak for membership."""
    scores, truth = scores_MC.ravel(), inside_MC.ravel()
    wrong, right, _ = roc_curve(truth, scores)
    return Outcome(
        float(roc_auc_score(truth, scores)),
        float((right - wrong).max()),
        {share: hits(scores[truth], scores[~truth], share) for share in false_alarms},
    )


def hits(members: Floats, others: Floats, false_alarms: float) -> float | None:
    """Share of members above the lowest threshold that at most this share of the others is above.

    None if the share is less than one of the others: that few cannot be counted.
    """
    allowed = math.floor(false_alarms * len(others) + 1e-9)
    if allowed < 1:
        return None
    if allowed >= len(others):
        return 1.0
    threshold = np.sort(others)[-allowed - 1]
    return float((members > threshold).mean())


def most_hits(false_alarms: float, epsilon: float, delta: float) -> float:
    """Most hits at these false alarms that (epsilon, delta) leaves an attack (Kairouz et al. 2015, arXiv:1311.0776)."""
    return min(
        1.0, math.exp(epsilon) * false_alarms + delta, 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    )


def most_advantage(epsilon: float, delta: float) -> float:
    """Largest advantage that (epsilon, delta) leaves any attack: where the two lines of `most_hits` meet."""
    return (math.exp(epsilon) - 1 + 2 * delta) / (math.exp(epsilon) + 1)
