"""The device that a site trains on."""

import torch

from common import wire
from common.errors import ConfigError


def choose_device(setting: str, turn: int = 0) -> torch.device:
    """`auto`: a CUDA device if there is one, else the CPU. Raises ConfigError for a device that is not there.

    With `auto`, the trainers of one machine take turns over its CUDA devices: `turn` is this one's number, from 0.
    `CUDA_VISIBLE_DEVICES` says which devices a process sees.
    """
    if setting == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", turn % torch.cuda.device_count())
    device = torch.device(setting)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: found {setting!r}, but this process sees {torch.cuda.device_count()} CUDA device(s); "
            "use `auto` or `cpu`, or give the process a GPU"
        )
    return device


def device_name(device: torch.device) -> str:
    """Name for the server's table; no serial numbers, and of the characters that a message takes."""
    if device.type != "cuda":
        return device.type
    return wire.device_name(torch.cuda.get_device_name(device))
