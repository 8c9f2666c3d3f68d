"""Parameter-efficient tuning: small new layers, put into a model that is already built.

What they add is trained and travels; the rest stays as it came and only its hash is compared. Linear
probe and BitFit add nothing: they are a choice of names, see parts.py.
"""

from typing import assert_never

from torch import nn

from common.config import BitFit, Bottleneck, ImageSide, LinearProbe, Lora
from common.errors import ConfigError


def install(model: nn.Module, config: ImageSide) -> None:
    """Put in what the study's tuning adds. Raises ConfigError if the encoder has no place for it."""
    match config.tuning:
        case None | LinearProbe() | BitFit():
            return
        case Lora() | Bottleneck():
            raise ConfigError(f"model.tuning: {type(model).__name__} cannot be tuned yet")
        case _:
            assert_never(config.tuning)
