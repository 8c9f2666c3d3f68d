"""The devices that a site trains on."""

from collections.abc import Sequence

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


def choose_devices(settings: Sequence[str], turn: int = 0) -> tuple[torch.device, ...]:
    """The devices of a site, the first of which is the trainer's own. Raises ConfigError as `choose_device`."""
    return tuple(choose_device(setting, turn) for setting in settings)


def device_name(device: torch.device, num_devices: int = 1) -> str:
    """Name for the server's table; no serial numbers, and of the characters that a message takes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return wire.device_name(name if num_devices == 1 else f"{num_devices} x {name}")
