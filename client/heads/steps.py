"""One step towards the study's heads, carried out on this site's features.

Features stay at the site. The answer holds sums over training images (`client/heads/sums.py`), coefficients of a
linear head where the study lets the sites vote, the arrays of a head that travels and may leave, and scores on
validation or test images (`client/heads/scores.py`). A head that has no result here is reported with one fixed word,
and the others continue. The site's own log has the details.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

import numpy as np

from client.heads import scores, sums, travel
from client.heads.features import Features
from client.heads.own_heads import FeatureTable, Place, fit, require_many, unavailable
from client.heads.worker import HeadUnavailable
from common import wire
from common.config import StudyConfig
from common.config.heads import SOFTMAX, HeadsConfig, Vote
from common.errors import PolicyRefusal, WireError
from common.files import write_atomically
from common.heads import (
    Floats,
    Fourier,
    View,
    below,
    identity,
    outliers,
    read_head,
    read_view,
    softmax,
    travelling,
    under,
)
from common.heads.result import HeadResult
from common.metrics.counts import NUM_BINS
from common.settings import to_yaml
from common.weights import Array, save_file
from common.wire import head_steps

STUDY, WEIGHTS = "study.yaml", "weights.safetensors"


def carry_out(plan: wire.HeadPlan, table: FeatureTable, place: Place) -> wire.HeadAnswer:
    """The answer to one step. Raises ConsiliumError; this site is then left out of the step."""
    started = time.monotonic()
    heads, train = plan.study.heads, table.sides["train"]
    if heads is None:
        raise WireError("found a plan for heads in a study without any")
    if plan.step.kind != "score" and plan.site not in plan.study.sites.train:
        raise PolicyRefusal("this site only scores", reason="heads: this site only scores")
    counts = np.bincount(train.labels_N, minlength=len(plan.study.classes))
    if place.noisy_counts is not None:
        counts = np.asarray(place.noisy_counts)
    arrays: dict[str, Array] = {}
    results: list[HeadResult] = []
    counted: tuple[int, ...] | None = None
    match plan.step:
        case head_steps.StatisticsStep() if place.noisy_sums is not None:
            arrays = dict(under("statistics/raw", place.noisy_sums(train)))
        case head_steps.StatisticsStep(views=views):
            for request in views:
                _check_weights(request.class_weights, plan.study)
                mapped_ND = table.mapped(_view(plan, request.name, request.fourier, table))
                require_many(mapped_ND, train, place.max_patient_share)
                arrays |= under(
                    f"statistics/{request.name}", sums.statistics(mapped_ND, train.labels_N, request)
                )
        case head_steps.GradientsStep(objectives=objectives):
            for objective in objectives:
                _check_weights(objective.class_weights, plan.study)
                if any(
                    weight == 0 < count for weight, count in zip(objective.class_weights, counts, strict=True)
                ):
                    raise PolicyRefusal(
                        "a gradient would leave out the images of a class",
                        reason="contract: gradients are asked for without the images of a class",
                    )
                mapped_ND = table.mapped(_view(plan, objective.name, objective.fourier, table))
                points_PC = _points(plan, objective.name, mapped_ND.shape[1])
                losses, slopes_PC = sums.gradient(
                    mapped_ND, train.labels_N, points_PC, objective, train.groups_N, place.min_cell
                )
                arrays |= {f"losses/{objective.name}": losses, f"gradients/{objective.name}": slopes_PC}
        case head_steps.CoefficientsStep(votes=votes):
            for config in _votes(heads, votes):
                mapped_ND = table.mapped(_view(plan, config.title, None, table))
                try:
                    coefficients = fit(config, mapped_ND, table, plan, place)
                except HeadUnavailable as error:
                    results.append(unavailable(f"federated.{config.title}", error))
                else:
                    arrays |= under(f"coefficients/{config.title}", coefficients)
        case head_steps.TravelStep():
            arrays, results = travel.leave(plan, plan.step, heads, table, place)
        case head_steps.ScoreStep():
            counts = np.zeros_like(counts)
            results = _scores(plan, plan.step, heads, table, place)
        case head_steps.OutliersStep():
            counts = np.zeros_like(counts)
            counted = _outliers(plan, table, place)
        case _:
            assert_never(plan.step)
    return wire.HeadAnswer(
        plan_id=plan.plan_id,
        site=plan.site,
        round=plan.round,
        step=plan.step.kind,
        train_counts=tuple(counts.tolist()),
        results=tuple(results),
        outliers=counted,
        seconds=time.monotonic() - started if place.noisy_counts is None else 0.0,
        epsilon=place.epsilon() if place.epsilon is not None else None,
        arrays=arrays,
    )


# --- arrays of the plan ---------------------------------------------------------------------------


def _view(plan: wire.HeadPlan, name: str, fourier: Fourier | None, table: FeatureTable) -> View:
    arrays = below(f"view/{name}", plan.arrays)
    if not arrays and fourier is None:
        return identity(table.sides["train"].features_NF.shape[1])
    return read_view(arrays, fourier)


def _points(plan: wire.HeadPlan, name: str, width: int) -> Floats:
    points_PC = plan.arrays.get(f"points/{name}")
    shape = (width + 1, len(plan.study.classes))
    if points_PC is None or points_PC.shape != shape or not np.all(np.isfinite(points_PC)):
        raise WireError(
            f"found no array of shape {list(shape)} with finite numbers for a head that is searched for"
        )
    return np.asarray(points_PC, np.float64)


def _check_weights(weights_C: tuple[float, ...], study: StudyConfig) -> None:
    if len(weights_C) != len(study.classes):
        raise WireError(f"found weights of {len(weights_C)} classes, expected {len(study.classes)}")


def _votes(heads: HeadsConfig, names: tuple[str, ...]) -> list[Vote]:
    known = {head.title: head for head in heads.federated if isinstance(head, Vote)}
    if unknown := [name for name in names if name not in known]:
        raise WireError(f"found a plan for {len(unknown)} vote(s) that the study does not list")
    return [known[name] for name in names]


# --- fitting and scoring -----------------------------------------------------------------------


def _scores(
    plan: wire.HeadPlan, step: head_steps.ScoreStep, heads: HeadsConfig, table: FeatureTable, place: Place
) -> list[HeadResult]:
    test, classes = table.sides[step.side], len(plan.study.classes)
    if not len(test.labels_N):
        test = _without_images(test, classes)
    if place.noisy_scores is not None and step.side == "test":
        probabilities = {SOFTMAX: softmax(test.logits_NC)}
        for form in step.heads:
            head = read_head(form, below(f"head/{form.title}", plan.arrays), classes)
            found_NC = head.probabilities(test.features_NF) if len(test.labels_N) else test.logits_NC
            probabilities[form.title] = np.nan_to_num(found_NC)
        noisy = place.noisy_scores(probabilities, test)
        return [HeadResult(title=title, score=score) for title, score in noisy.items()]
    results = [
        scores.of_softmax(test.logits_NC, test.labels_N, test.groups_N, place.num_bins, place.min_score_cell)
    ]

    def beside(title: str, probabilities_NC: Floats) -> HeadResult:
        return scores.beside(
            title,
            probabilities_NC,
            test.logits_NC,
            test.labels_N,
            test.groups_N,
            place.num_bins,
            place.min_score_cell,
        )

    travelled = travel.of_others(plan, step, heads, test)
    if plan.site in plan.study.sites.train and not step.choosing:
        for config in heads.local:
            title = f"local.{config.title}"
            # A head that left comes back with those of the others, so it is not fitted a second time.
            own = travelled.get(travelling.Travelling(name=config.title, owner=plan.site).title)
            if own is not None and not isinstance(own, str):
                results.append(beside(title, own))
                continue
            try:
                fitted = fit(config, table.sides["train"].features_NF, table, plan, place, step.side)
            except HeadUnavailable as error:
                results.append(unavailable(title, error))
                continue
            results.append(beside(title, fitted["probabilities"]))
    for title, found in travelled.items():
        results.append(
            HeadResult(title=title, problem=found) if isinstance(found, str) else beside(title, found)
        )
    for form in step.heads:
        head = read_head(form, below(f"head/{form.title}", plan.arrays), classes)
        results.append(
            beside(
                form.title,
                head.probabilities(test.features_NF) if len(test.labels_N) else test.logits_NC,
            )
        )
    return results


def _outliers(plan: wire.HeadPlan, table: FeatureTable, place: Place) -> tuple[int, ...] | None:
    """Validation images by outlier score; None if such counts stay here."""
    if plan.study.out_of_distribution is None:
        raise WireError("found a plan for outlier scores in a study without any")
    if not place.counts_outliers:
        return None
    detector = outliers.read_detector(below("detector", plan.arrays), len(plan.study.classes))
    validation = table.sides["validation"]
    scores_N = detector.scores(validation.features_NF) if len(validation.labels_N) else np.zeros(0)
    return outliers.counted(scores_N, place.num_bins or NUM_BINS).images_B


def _without_images(test: Features, num_classes: int) -> Features:
    """No images, in shapes that can be counted."""
    return Features(test.features_NF, np.zeros((0, num_classes)), np.zeros(0, np.int64), ())


# --- for `consilium-site predict` ---------------------------------------------------------------


def keep_network(folder: Path, study: StudyConfig, weights: Mapping[str, Array], weights_digest: str) -> None:
    """Keep study and weights beside the heads, so that they can be used here. Raises StorageError."""
    write_atomically(folder / STUDY, to_yaml(study.model_dump(mode="json")))
    save_file(folder / WEIGHTS, weights, {"sha256": weights_digest})
