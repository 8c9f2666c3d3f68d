"""Batches that are prepared ahead: which, when, and that their values do not change."""

import threading
from pathlib import Path

import pytest
import torch

from client.images import Images, ImagesInTwoSteps
from client.training.hardware.prefetch import Prefetcher, on_host
from tests.client.data.test_store import IN_MEMORY, PLAIN, ImageStore, site

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_a_cpu_prepares_nothing_ahead() -> None:
    prepared: list[int] = []
    with Prefetcher(lambda key: prepared.append(key) or key * 10, CPU) as batches:  # type: ignore[func-returns-value]
        assert batches.get(1, following=2) == 10
        assert prepared == [1]


def test_beside_a_gpu_the_following_batch_is_prepared_in_another_thread() -> None:
    is_ready, threads = threading.Event(), dict[int, str]()

    def prepare(key: int) -> int:
        threads[key] = threading.current_thread().name
        if key == 2:
            is_ready.set()
        return key * 10

    with Prefetcher(prepare, GPU) as batches:
        assert batches.get(1, following=2) == 10
        assert is_ready.wait(timeout=60)
        assert batches.get(2, following=None) == 20
    assert threads[1] == threading.current_thread().name
    assert threads[2].startswith("prepare")


def test_a_step_that_is_taken_again_is_prepared_again_and_the_one_ahead_is_kept() -> None:
    prepared: list[int] = []

    def prepare(key: int) -> int:
        prepared.append(key)
        return key

    with Prefetcher(prepare, GPU) as batches:
        assert [batches.get(key, key + 1) for key in (1, 1, 2)] == [1, 1, 2]
    assert sorted(prepared[:3]) == [1, 1, 2]


def test_an_error_of_the_preparation_belongs_to_its_own_batch() -> None:
    def prepare(key: int) -> int:
        if key == 2:
            raise OSError("the disk is gone")
        return key

    with Prefetcher(prepare, GPU) as batches:
        assert batches.get(1, following=2) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            batches.get(2, following=3)


@pytest.mark.parametrize("augmentation", ["none", "paper", "dermoscopy", "mri"])
def test_images_in_two_steps_have_the_values_of_a_whole_batch(augmentation, tmp_path: Path) -> None:
    preprocessing = PLAIN.model_copy(update={"mean": (0.5, 0.2, 0.1), "std": (0.25, 1.0, 0.1)})
    store = ImageStore.build(site(tmp_path), preprocessing, IN_MEMORY, tmp_path)
    images, indices_B = store.images("train", augmentation), torch.tensor([3, 0, 1])
    assert isinstance(images, ImagesInTwoSteps)
    squares_BCSS, mirrored_B = images.squares(indices_B, torch.Generator().manual_seed(5))
    assert squares_BCSS.dtype == torch.uint8
    whole = images.batch(indices_B, torch.Generator().manual_seed(5))
    assert torch.equal(images.finishing(squares_BCSS, mirrored_B), whole)


def test_a_cpu_gets_whole_batches_in_the_format_of_the_weights(generate_images) -> None:
    images: Images = generate_images(4)
    prepared = on_host(images, torch.tensor([2, 0, 3]), None, CPU)
    assert torch.equal(prepared.on_device((0, 2), CPU, torch.float64), images.pixels_NCHW[[2, 0]].double())
