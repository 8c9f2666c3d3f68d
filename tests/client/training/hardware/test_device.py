"""The device that a site trains on."""

import pytest
import torch

from client.training.hardware.device import choose_device, device_name
from common.errors import ConfigError


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"'cuda:1'.*1 CUDA device.*use `auto` or `cpu`"):
        choose_device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("available", "device"), [(True, "cuda:0"), (False, "cpu")])
def test_auto_takes_a_gpu_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, available: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(available))
    assert choose_device("auto") == torch.device(device)


def test_eight_trainers_take_turns_over_two_gpus_and_a_named_gpu_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device("auto", turn).index for turn in range(8)] == [0, 1, 0, 1, 0, 1, 0, 1]
    assert {choose_device("cuda:1", turn).index for turn in range(8)} == {1}


def test_the_cpu_is_called_cpu() -> None:
    assert device_name(torch.device("cpu")) == "cpu"
