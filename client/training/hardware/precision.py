"""The number format of a computation: how weights are kept, and what multiplies.

Weights are kept in float32 (float64 if the study asks for it), so that small steps are not
rounded away; bf16 and fp16 are used inside the forward pass only.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeAlias

import torch

from common.errors import ConfigError

Precision: TypeAlias = Literal["auto", "float32", "float64", "bf16", "fp16"]


def weights_dtype(precision: Precision) -> torch.dtype:
    """Format of weights, inputs and the loss."""
    return torch.float64 if precision == "float64" else torch.float32


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Format inside the forward pass. Raises ConfigError if the device cannot compute in it."""
    match precision:
        case "float32" | "float64":
            return weights_dtype(precision)
        case "bf16":
            return torch.bfloat16
        case "fp16" if device.type == "cuda":
            return torch.float16
        case "fp16":
            raise ConfigError(
                f"local.precision: fp16 needs a GPU, and this site computes on {device.type}; "
                "use auto, which every site can follow."
            )
        case "auto":
            has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if has_bf16 else torch.float32


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The forward pass runs inside this. Raises ConfigError."""
    dtype = compute_dtype(precision, device)
    if dtype == weights_dtype(precision):
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)
