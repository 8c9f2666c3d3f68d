"""Exact and fast computation: how torch is set up."""

from collections.abc import Iterator

import pytest
import torch

from client.training.hardware import determinism


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    determinism.apply("exact")


@pytest.mark.parametrize(("how", "is_exact"), [("exact", True), ("fast", False)])
def test_exact_asks_for_deterministic_kernels_and_whole_float32(how, is_exact: bool) -> None:
    determinism.apply(how)
    assert torch.are_deterministic_algorithms_enabled() == is_exact
    assert torch.backends.cudnn.benchmark != is_exact
    assert torch.backends.cudnn.allow_tf32 != is_exact
    assert torch.backends.cuda.matmul.allow_tf32 != is_exact


@pytest.mark.parametrize("how", ["exact", "fast"])
def test_new_memory_is_not_filled(how) -> None:
    determinism.apply(how)
    assert not torch.utils.deterministic.fill_uninitialized_memory
