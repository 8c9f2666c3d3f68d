"""A small study of three sites that train and one that only scores, with generated figures."""

import numpy as np
import pytest

from common.config import ClassifierConfig, SitesConfig, StudyConfig
from common.metrics import Score, count
from common.weights import TensorSpec
from server.state import ChosenWeights, OptimizerState, RoundState, SiteRound

CLASSES = ("bkl", "mel", "nv")


@pytest.fixture
def study() -> StudyConfig:
    return StudyConfig(
        name="demo",
        classes=CLASSES,
        sites=SitesConfig(train=("north", "south", "west"), evaluate=("unseen",), required=2),
        model=ClassifierConfig(encoder="convnext_t", image_size=64),
        rounds=3,
    )


@pytest.fixture
def layout():
    return {
        "stem.weight": TensorSpec(shape=(2, 3), dtype="float32"),
        "head.bias": TensorSpec(shape=(3,), dtype="float64"),
        "norm.running_var": TensorSpec(shape=(2,), dtype="float32", role="statistic"),
    }


@pytest.fixture
def random_arrays(layout):
    """Arrays that fit the layout, other ones for every seed."""

    def draw(seed: int, scale: float = 1.0):
        rng = np.random.default_rng(seed)
        return {name: scale * rng.normal(size=s.shape).astype(s.dtype) for name, s in layout.items()}

    return draw


@pytest.fixture
def random_score():
    """The score of a model on generated images; `skill` is how far it favours the right class."""

    def draw(seed: int, num_images: int = 30, skill: float = 1.0, num_classes: int = 3) -> Score:
        rng = np.random.default_rng(seed)
        labels_N = rng.integers(0, num_classes, num_images)
        logits_NC = rng.normal(size=(num_images, num_classes))
        logits_NC[np.arange(num_images), labels_N] += skill
        weights_NC = np.exp(logits_NC)
        probabilities_NC = weights_NC / weights_NC.sum(axis=1, keepdims=True)
        losses_N = -np.log(probabilities_NC[np.arange(num_images), labels_N])
        return count(probabilities_NC, labels_N, float(losses_N.sum()))

    return draw


@pytest.fixture
def random_state(layout, random_arrays, random_score, study):
    """The study after some round, the closing one included: its scores are the same on both sides."""

    def draw(number: int, seed: int = 0) -> RoundState:
        trains = number <= study.rounds
        rows = [
            SiteRound(
                site,
                "ok",
                num_examples=10 * (place + 1) if trains and site in study.sites.train else 0,
                num_steps=2 if trains else 0,
                train_loss=1.5 / number if trains and site in study.sites.train else None,
                delta_norm=0.25 if trains else None,
                train_s=2.0,
                evaluate_s=1.0,
                answered_after_s=3.5,
                mib_down=0.5,
                mib_up=0.5 if trains else 0.0,
            )
            for place, site in enumerate(sorted(study.sites.all))
        ]
        scores = {
            row.site: random_score(seed + 10 * number + place, skill=0.5 * number)
            for place, row in enumerate(rows)
        }
        return RoundState(
            round=number,
            weights=random_arrays(seed + number),
            layout=layout,
            preprocessing={"image_size": 64, "mean": [0.5, 0.5, 0.5]},
            optimizer=OptimizerState(
                step=number, slots={"momentum": random_arrays(100 + number), "second_moment": {}}
            ),
            sites=tuple(rows),
            scores=scores,
            test_scores={} if trains else scores,
            chosen=None if trains else ChosenWeights(study.rounds, random_arrays(seed + number)),
            seconds=4.25,
            closing=not trains,
        )

    return draw
