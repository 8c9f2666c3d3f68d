"""The training loop on a GPU: the same bits again, the CPU's results, and survival of a lack of memory."""

import numpy as np
import pytest
import torch
from torch import nn

from client.data.store import StoredImages
from client.images import Preprocessing
from client.model.parameters import TensorNames, shared_arrays
from client.training.evaluate import evaluate
from client.training.fit import StudyPosition, TrainingResult, fit
from client.training.hardware import determinism
from client.training.hardware.out_of_memory import MostAtOnce
from client.training.hardware.prefetch import on_host
from common.config import AdamW, LocalConfig, Sgd
from common.errors import ConsiliumError
from common.weights import Arrays

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
LOCAL = LocalConfig(epochs=1, batch_size=16, optimizer=AdamW(lr=1e-3), precision="float32")


@pytest.fixture(autouse=True)
def _exact() -> None:
    determinism.apply("exact")


def stored(num_images: int = 64, size: int = 32, augmentation: str = "paper") -> StoredImages:
    preprocessing = Preprocessing(
        image_size=size, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), interpolation="bilinear"
    )
    side, draws = preprocessing.stored_size, torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (num_images, side, side, 3), dtype=torch.uint8, generator=draws)
    rows = torch.arange(num_images)
    return StoredImages(pixels, rows, rows % 3, preprocessing, augmentation)  # type: ignore[arg-type]


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def train(
    model: nn.Module,
    local: LocalConfig,
    device: torch.device,
    images: StoredImages | None = None,
    **more: object,
) -> TrainingResult:
    names = TensorNames(shared=tuple(model.state_dict()), local=(), frozen=())
    position = StudyPosition(round=1, rounds=1)
    return fit(
        model, images or stored(), local, parts=names, progress=position, penalty=None, device=device, seed=7,
        num_classes=3, **more,
    )  # type: ignore[arg-type]  # fmt: skip


def weights(model: nn.Module) -> Arrays:
    return shared_arrays(model, TensorNames(shared=tuple(model.state_dict()), local=(), frozen=()))


def trained(local: LocalConfig, device: torch.device, dropout: float = 0.0, **more: object) -> Arrays:
    model = network(dropout)
    train(model, local, device, **more)  # type: ignore[arg-type]
    return weights(model)


def same(one: Arrays, other: Arrays) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_same_round_gives_the_same_bits_again(precision) -> None:
    local = LOCAL.model_copy(update={"precision": precision, "epochs": 3})
    assert same(trained(local, GPU, dropout=0.3), trained(local, GPU, dropout=0.3))


def test_dropout_is_drawn_from_the_seed_of_the_step() -> None:
    assert not same(trained(LOCAL, GPU, dropout=0.3), trained(LOCAL, GPU, dropout=0.0))


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-3), Sgd(lr=0.05)])
def test_a_gpu_comes_to_the_weights_of_a_cpu(optimizer) -> None:
    local = LOCAL.model_copy(update={"optimizer": optimizer, "epochs": 2})
    on_gpu, on_cpu = trained(local, GPU), trained(local, CPU)
    for name, array in on_cpu.items():
        assert np.allclose(on_gpu[name], array, atol=2e-4), name


def test_a_batch_of_bytes_is_normalised_on_the_device_as_on_the_cpu() -> None:
    images, indices_B = stored(), torch.tensor([5, 3, 9])
    prepared = on_host(images, indices_B, torch.Generator().manual_seed(2), GPU)
    assert prepared.part_BCHW.is_pinned()
    batch = prepared.on_device((0, 3), GPU, torch.float32).cpu()
    assert torch.allclose(batch, images.batch(indices_B, torch.Generator().manual_seed(2)), atol=1e-6)


def test_kept_optimizer_state_goes_on_where_it_was() -> None:
    whole = network()
    first = train(whole, LOCAL, GPU)
    train(whole, LOCAL, GPU, optimizer_state=first.optimizer_state)
    restarted = network()
    again = train(restarted, LOCAL, GPU)
    train(restarted, LOCAL, GPU, optimizer_state=again.optimizer_state)
    assert same(weights(whole), weights(restarted))
    fresh = network()
    train(fresh, LOCAL, GPU)
    train(fresh, LOCAL, GPU)
    assert not same(weights(whole), weights(fresh))


def test_a_loss_that_is_not_finite_is_named_with_its_step() -> None:
    local = LOCAL.model_copy(update={"optimizer": Sgd(lr=1e30), "epochs": 2})
    with pytest.raises(
        ConsiliumError, match=r"training stopped at step [1-8] of this round .*not a finite number"
    ):
        trained(local, GPU)


class Hungry(nn.Module):
    """A layer that takes 64 MiB for every image of a batch in training."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.asked: list[int] = []

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(batch_BCHW))
        torch.empty(len(batch_BCHW), 2**24, device=batch_BCHW.device)
        return self.inner(batch_BCHW)  # type: ignore[no-any-return]


def test_a_lack_of_memory_is_survived_and_remembered() -> None:
    model, most = Hungry(network()), MostAtOnce()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 700 * 2**20) / total)
    try:
        result = train(model, LOCAL, GPU, most_at_once=most)
        assert result.micro_batch_size == most.training == 8  # 16 images take 1,024 MiB, 8 take 512
        model.asked.clear()
        train(model, LOCAL, GPU, most_at_once=most)
        assert max(model.asked) == 8
        model.asked.clear()
        evaluate(model, stored(), num_classes=3, device=GPU, precision="float32", most_at_once=most)
        assert most.inference is not None
        assert most.inference <= 8
        model.asked.clear()
        evaluate(model, stored(), num_classes=3, device=GPU, precision="float32", most_at_once=most)
        assert max(model.asked) == most.inference
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_compiled_model_trains_to_nearly_the_same_weights() -> None:
    plain, compiled = trained(LOCAL, GPU), trained(LOCAL.model_copy(update={"compile": True}), GPU)
    for name, array in plain.items():
        assert np.allclose(compiled[name], array, atol=1e-3), name
