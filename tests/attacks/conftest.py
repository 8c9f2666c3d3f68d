"""A hospital with the policy of a start-up kit, and a server that means harm and speaks bytes to its trainer."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.kit_policy import kit_rules
from client.config import SiteConfig
from client.governance import approval
from client.trainer import Trainer
from common import wire
from common.config import StudyConfig
from common.settings import validate_settings
from common.wire import codec

Hospital = Callable[..., Trainer]
CLASSES = ("benign", "melanoma")


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """`hospital(size=32, per_class=12)`: a trainer on drawn images, under the kit's policy and these changes to it.

    The images are noise, `smooth` ones noise of 6 x 6 pixels made larger: without edges, as skin is.
    """

    def make(
        size: int = 32,
        per_class: int = 24,
        split: dict[str, Any] | None = None,
        smooth: bool = False,
        **policy: Any,
    ) -> Trainer:
        draws = np.random.default_rng(0)
        for label in CLASSES:
            folder = tmp_path / "images" / label
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(per_class):
                detail = 6 if smooth else size
                pixels = draws.integers(0, 256, (detail, detail, 3)).astype(np.uint8)
                Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(
                    folder / f"{number:03d}.png"
                )
        settings = {
            "name": "north",
            "data": {"kind": "folders", "root": str(tmp_path / "images")},
            "state_dir": str(tmp_path / "state"),
            "split": split or {"kind": "grouped", "test_share": 0.5, "validation": 0},
            "device": "cpu",
            "threads": 1,
            "policy": kit_rules() | policy,
        }
        return Trainer(validate_settings(settings, SiteConfig, "site", "site.yaml"))

    return make


def study(**changes: Any) -> StudyConfig:
    base: dict[str, Any] = {
        "name": "skin",
        "classes": list(CLASSES),
        "sites": {"train": ["north", "south"]},
        "model": {"encoder": "test_vit", "image_size": 32},
        "rounds": 3,
        "local": {"epochs": 1, "batch_size": 8, "augmentation": "none"},
    }
    return StudyConfig.model_validate(base | changes)


def ask(trainer: Trainer, plan: wire.Plan) -> wire.Answer:
    answer = codec.from_bytes(trainer.answer(codec.to_bytes(plan)))
    assert not isinstance(answer, wire.Plan)
    return answer


def approve(trainer: Trainer, chosen: StudyConfig) -> None:
    """A person at the site agrees to what the study says of itself."""
    enrol(trainer, chosen)
    state_dir = trainer._site.state_dir
    approval.approve(state_dir, approval.find(state_dir, chosen.name), by="Dr X", now=datetime.now(UTC))


def enrol(
    trainer: Trainer, chosen: StudyConfig, *, want_weights: bool = False, plan_id: str = "e"
) -> wire.Answer:
    return ask(
        trainer, wire.EnrolPlan(plan_id=plan_id, site="north", study=chosen, want_weights=want_weights)
    )


def enrolled(trainer: Trainer, chosen: StudyConfig) -> dict[str, np.ndarray]:
    """First weights of an approved study, as the site sends them."""
    approve(trainer, chosen)
    answer = enrol(trainer, chosen, want_weights=chosen.sites.train[0] == "north", plan_id="e2")
    assert isinstance(answer, wire.Enrolment), answer
    return dict(answer.weights)


def round_plan(
    chosen: StudyConfig,
    weights: object,
    *,
    number: int = 1,
    train: bool = True,
    plan_id: str = "r",
    **more: Any,
) -> wire.RoundPlan:
    return wire.RoundPlan(
        plan_id=plan_id, site="north", study=chosen, round=number, train=train, weights=weights, **more
    )


def refusal(answer: wire.Answer) -> str:
    """Why the site refused."""
    assert isinstance(answer, wire.Failure), answer
    assert answer.error == "policy", answer
    return answer.reason
