"""An optimizer whose state is carried from one round to the next goes on as if there had been one."""

from typing import Any

import numpy as np
import pytest
import torch

from client.model.build import build
from client.model.parameters import partition, shared_arrays
from client.training.fit import StudyPosition, TrainingResult, fit
from client.training.state import optimizer_state
from client.training.state.local_state import SiteState
from common.config import ClassifierConfig, LocalConfig, StudyConfig
from common.weights import Arrays

CONFIG = ClassifierConfig(encoder="test_convnext", image_size=32)
KINDS = ("sgd", "adam", "adamw", "adagrad", "adadelta", "rmsprop")


def trained(
    images: Any, model: torch.nn.Module, steps: int, kind: str, state: Arrays | None = None
) -> TrainingResult:
    local = LocalConfig.model_validate(
        {
            "steps": steps, "batch_size": "all", "augmentation": "none", "precision": "float64",
            "optimizer": {"kind": kind, "lr": 1e-2}, "optimizer_state": "keep",
        }
    )  # fmt: skip
    return fit(
        model, images, local, parts=partition(model, CONFIG), progress=StudyPosition(1, 1), penalty=None,
        device=torch.device("cpu"), seed=7, num_classes=3, optimizer_state=state,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_two_rounds_of_two_steps_are_one_of_four(generate_images: Any, kind: str) -> None:
    images = generate_images(6)
    whole, parted = (build(CONFIG, 3, seed=1, weights_dir=None).model for _ in range(2))
    trained(images, whole, 4, kind)
    first = trained(images, parted, 2, kind)
    trained(images, parted, 2, kind, first.optimizer_state)
    parts = partition(whole, CONFIG)
    ours, theirs = shared_arrays(parted, parts), shared_arrays(whole, parts)
    # Images are summed in another order.
    assert all(np.allclose(ours[name], theirs[name], rtol=0, atol=1e-9) for name in theirs)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_without_its_state_an_optimizer_goes_another_way(generate_images: Any, kind: str) -> None:
    images = generate_images(6)
    whole, fresh = (build(CONFIG, 3, seed=1, weights_dir=None).model for _ in range(2))
    trained(images, whole, 4, kind)
    trained(images, fresh, 2, kind)
    trained(images, fresh, 2, kind)
    parts = partition(whole, CONFIG)
    ours, theirs = shared_arrays(fresh, parts), shared_arrays(whole, parts)
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs) > 1e-4


def test_adaptive_optimizers_keep_their_state_and_sgd_does_not_unless_the_study_says_so() -> None:
    kept = {
        kind: LocalConfig.model_validate({"optimizer": {"kind": kind}}).keeps_optimizer_state
        for kind in KINDS
    }
    assert kept == {kind: kind != "sgd" for kind in KINDS}
    for said in ("keep", "fresh"):
        local = LocalConfig.model_validate({"optimizer_state": said})
        assert local.keeps_optimizer_state == (said == "keep")


def test_the_state_of_a_parameter_that_is_one_number_keeps_its_shape() -> None:
    """CLIP's temperature is such a one."""
    scale = torch.nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.AdamW([scale], lr=0.1)
    scale.backward()
    optimizer.step()
    kept = optimizer_state.arrays(optimizer, {"scale": scale})
    assert {name: array.shape for name, array in kept.items()} == {
        "scale/step": (), "scale/exp_avg": (), "scale/exp_avg_sq": (),
    }  # fmt: skip
    again = torch.optim.AdamW([scale], lr=0.1)
    optimizer_state.load(again, {"scale": scale}, kept)
    again.step()


# --- on the site's disk ------------------------------------------------------------------------


@pytest.fixture
def state(make_study: Any, tmp_path: Any) -> SiteState:
    study: StudyConfig = make_study()
    return SiteState(tmp_path, study)


def arrays(value: float) -> dict[str, np.ndarray]:
    return {"head.weight/exp_avg": np.full(2, value)}


def test_the_state_of_the_round_before_is_taken_and_of_the_same_round_again(state: SiteState) -> None:
    for number in (1, 2):
        state.keep_optimizer(number, arrays(number))
    for before, value in ((3, 2.0), (2, 1.0)):  # a server that lost round 2 asks for it again
        found = state.optimizer_arrays(before)
        assert found is not None
        assert found["head.weight/exp_avg"].tolist() == [value, value]


def test_after_missed_rounds_the_state_is_dropped_with_a_word(
    state: SiteState, caplog: pytest.LogCaptureFixture
) -> None:
    assert state.optimizer_arrays(1) is None
    assert not caplog.messages
    state.keep_optimizer(2, arrays(1))
    assert state.optimizer_arrays(5) is None
    assert caplog.messages == ["round 5: the optimizer starts fresh, because this site's last round was 2"]


def test_two_rounds_are_kept_and_none_of_a_former_run(state: SiteState) -> None:
    for number in (1, 2, 3):
        state.keep_optimizer(number, arrays(number))
    assert sorted(path.name for path in state.folder.iterdir()) == [
        "optimizer-00002.safetensors", "optimizer-00003.safetensors",
    ]  # fmt: skip
    state.forget()
    assert list(state.folder.iterdir()) == []
