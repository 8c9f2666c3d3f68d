"""Two devices of one site: the gradient of one device, and a process that goes away."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from client.model.build import of_study
from client.model.parameters import TensorNames, partition, shared_arrays
from client.training.devices.group import FurtherDevices, parts
from client.training.fit import StudyPosition, TrainingResult, fit
from client.training.hardware.out_of_memory import MostAtOnce
from client.training.losses import of_study as loss_of
from client.training.penalty import build_penalty
from common.config import FedAvg, FedProx, LocalConfig, Sgd, StudyConfig
from common.errors import ConsiliumError, DeviceLost
from common.weights import Arrays

CPU = torch.device("cpu")
COUNTS = (4, 4, 3)
STUDY: dict[str, Any] = {
    "name": "devices",
    "classes": ["dark", "pale", "red"],
    "model": {"encoder": "test_vit", "image_size": 32},
    "sites": {"train": ["north", "south"]},
    "rounds": 1,
}
LOCAL = LocalConfig(
    epochs=1,
    batch_size=5,
    optimizer=Sgd(lr=0.1),
    class_weights="site",
    label_smoothing=0.1,
    precision="float64",
)


def study_of(local: LocalConfig = LOCAL, **model: Any) -> StudyConfig:
    settings = {**STUDY, "model": {**STUDY["model"], **model}, "local": local.model_dump()}
    return StudyConfig.model_validate(settings)


@pytest.fixture(scope="module")
def second() -> Iterator[FurtherDevices]:
    """A second CPU, for all tests that leave it alive."""
    further = _further(study_of())
    yield further
    further.close()


def _further(study: StudyConfig) -> FurtherDevices:
    built = of_study(study, None)
    return FurtherDevices([CPU], study, None, partition(built.model, study.model).trained)


def train(
    images: Any,
    further: FurtherDevices | None,
    local: LocalConfig = LOCAL,
    *,
    mu: float = 0.0,
    head_only: bool = False,
    **settings: Any,
) -> tuple[Arrays, TrainingResult]:
    """The weights after one round from the first weights of the study, and what `fit` says of it."""
    study = study_of(local)
    model = of_study(study, None).model
    names = partition(model, study.model)
    if head_only:
        head = tuple(name for name in names.shared if name.startswith("head."))
        names = TensorNames(head, (), tuple(name for name in names.shared if name not in head))
        with torch.no_grad():
            model.get_parameter("blocks.0.mlp.fc1.weight").mul_(1.1)  # as another round has left it
    if local.precision == "float64":
        model.double()
    fitted = fit(
        model,
        images,
        local,
        parts=names,
        progress=StudyPosition(round=1, rounds=1),
        penalty=build_penalty(FedProx(mu=mu) if mu else FedAvg(), model),
        device=CPU,
        seed=7,
        num_classes=3,
        loss=loss_of(study.model, local, COUNTS),
        further=further,
        **settings,
    )
    return shared_arrays(model, names), fitted


def furthest(left: Arrays, right: Arrays) -> float:
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


@pytest.mark.parametrize(
    ("num_images", "num_devices", "spans"),
    [(5, 2, [(0, 3), (3, 5)]), (6, 3, [(0, 2), (2, 4), (4, 6)]), (1, 2, [(0, 1), (1, 1)])],
)
def test_a_batch_is_cut_in_order_into_parts_of_equal_size(
    num_images: int, num_devices: int, spans: list[tuple[int, int]]
) -> None:
    assert parts(num_images, num_devices) == spans


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch_size": 2, "clip_grad_norm": 0.5},
        {"class_weights": "none", "loss": "balanced_softmax", "channels_last": False},
        {"class_weights": "none", "loss": "focal", "label_smoothing": 0.0, "batch_size": 1},
    ],
    ids=["weighted", "micro-batches", "balanced", "more devices than images"],
)
def test_two_devices_take_the_steps_of_one(
    second: FurtherDevices, generate_images: Callable[..., Any], changes: dict[str, Any]
) -> None:
    local, images = LOCAL.model_copy(update=changes), generate_images(11)
    one, fitted_by_one = train(images, None, local, mu=0.3)
    two, fitted_by_two = train(images, second, local, mu=0.3)
    assert furthest(one, two) < 1e-9
    assert fitted_by_two.mean_loss == pytest.approx(fitted_by_one.mean_loss, abs=1e-9)
    assert torch.allclose(fitted_by_two.slopes_N, fitted_by_one.slopes_N, rtol=0, atol=1e-9)
    again, _ = train(images, second, local, mu=0.3)
    assert furthest(two, again) == 0


def test_weights_that_are_not_trained_in_this_round_reach_the_other_device(
    second: FurtherDevices, generate_images: Callable[..., Any]
) -> None:
    one, _ = train(generate_images(11), None, head_only=True)
    two, _ = train(generate_images(11), second, head_only=True)
    assert furthest(one, two) < 1e-9


def test_a_device_that_lacks_memory_makes_the_micro_batch_smaller_for_all(
    second: FurtherDevices, generate_images: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = FurtherDevices.collect, []

    def full_once(self: FurtherDevices, slopes: Any) -> float:
        calls.append(1)
        loss = real(self, slopes)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return loss

    most = MostAtOnce()
    one, _ = train(generate_images(11), None)
    with monkeypatch.context() as patched:
        patched.setattr(FurtherDevices, "collect", full_once)
        two, fitted = train(generate_images(11), second, most_at_once=most)
    assert fitted.micro_batch_size == most.training == 2  # half of 5
    assert furthest(one, two) < 1e-9


def test_a_process_that_is_killed_ends_the_round_with_its_name_and_the_next_round_goes_on(
    second: FurtherDevices, generate_images: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = generate_images(11)
    one, _ = train(images, None)
    real, steps = FurtherDevices.begin_step, []

    def killed_in_the_second_step(self: FurtherDevices) -> None:
        steps.append(1)
        if len(steps) == 2:
            self._processes[0]._process.kill()
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(FurtherDevices, "begin_step", killed_in_the_second_step)
        with pytest.raises(
            DeviceLost, match=r"device cpu was ended by signal 9.*next one starts the process"
        ):
            train(images, second)
    assert furthest(one, train(images, second)[0]) < 1e-9


def test_the_error_of_another_device_is_in_the_message(generate_images: Callable[..., Any]) -> None:
    further = FurtherDevices([CPU], study_of(encoder="no_such_encoder"), None, frozenset())
    with pytest.raises(ConsiliumError, match=r"device cpu could not go on.*no_such_encoder"):
        train(generate_images(11), further)
    assert further._processes == []
