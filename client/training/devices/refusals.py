"""Which studies several devices cannot share the batches of: those in which images of a batch look at each other."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from client.model.parameters import TensorNames
from common.config import ClipConfig, StudyConfig
from common.errors import ConfigError

_ONE = "; give this site one `device` in site.yaml"


def require_parts(study: StudyConfig, model: nn.Module, names: TensorNames) -> None:
    """Raise ConfigError unless the gradient of a batch is the sum of those of its parts."""
    if study.privacy is not None:
        raise ConfigError(
            "device: found several, but the study has privacy, and the gradient of a patient is shrunk on one device "
            f"alone{_ONE}"
        )
    moving = [
        path
        for path, layer in model.named_modules()
        if isinstance(layer, BatchNorm) and f"{path}.running_mean" in names.trained
    ]
    if moving:
        raise ConfigError(
            f"device: found several, but {study.model.encoder} trains batch normalisation ({len(moving)} layers), "
            "whose means are those of a whole batch, and each device sees a part of it. Take an encoder without it, or "
            f"a tuning or `trainable` that leaves those layers frozen{_ONE}"
        )
    if isinstance(study.model, ClipConfig) and study.model.loss != "class":
        raise ConfigError(
            f"device: found several, but model.loss={study.model.loss} compares all images of a batch with each "
            f"other, and each device sees a part of it. Take model.loss=class{_ONE}"
        )
    for name, share in (("mixstyle", study.local.mixstyle), ("amplitude_mix", study.local.amplitude_mix)):
        if share > 0:
            raise ConfigError(
                f"device: found several, but local.{name}={share:g} mixes the images of a batch, and each device sees "
                f"a part of it. Set it to 0{_ONE}"
            )
