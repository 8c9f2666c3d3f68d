"""Augmentation: random changes to training images, by preset.

torchvision's transforms v2 draw from torch's global generator; here every image's draws come from a
seed of its own, drawn from the caller's generator, so that a step can be taken again bit for bit.
`paper`'s crop and flip need no transform and are done where the pixels lie (`client/data/store.py`).
"""

from collections.abc import Sequence
from functools import cache
from typing import Literal, TypeAlias, assert_never

import torch
from torchvision.transforms import InterpolationMode, v2

Preset: TypeAlias = Literal["dermoscopy", "mri"]

_QUARTER = 4
"""A square turned by any angle shows no corner if a quarter of its side is mirrored at each edge."""


def augmented(
    squares_BCRR: Sequence[torch.Tensor], preset: Preset, size: int, generator: torch.Generator
) -> torch.Tensor:
    """uint8 (B, 3, S, S) from uint8 (3, R, R) squares, each with draws of its own."""
    seeds_B = torch.randint(2**62, (len(squares_BCRR),), generator=generator).tolist()
    change = _transform(preset, size, squares_BCRR[0].shape[-1])
    done = []
    with torch.random.fork_rng(devices=[]):
        for square_CRR, seed in zip(squares_BCRR, seeds_B, strict=True):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
            done.append(change(square_CRR))
    return torch.stack(done)


@cache
def _transform(preset: Preset, size: int, side: int) -> v2.Transform:
    bilinear = InterpolationMode.BILINEAR
    match preset:
        case "dermoscopy":  # a lesion has no up or down; light and camera tint it
            return v2.Compose(
                [
                    v2.Pad(side // _QUARTER, padding_mode="reflect"),
                    v2.RandomRotation(180, interpolation=bilinear),
                    v2.CenterCrop(side),
                    v2.RandomHorizontalFlip(),
                    v2.RandomVerticalFlip(),
                    v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(0.9, 1.1), antialias=True),
                    v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05),
                ]
            )
        case "mri":  # heads are upright, nearly mirror images; scanners differ in brightness, not in colour
            return v2.Compose(
                [
                    v2.RandomRotation(15, interpolation=bilinear),
                    v2.RandomHorizontalFlip(),
                    v2.RandomResizedCrop(size, scale=(0.8, 1.0), ratio=(0.95, 1.05), antialias=True),
                    v2.ColorJitter(brightness=0.2, contrast=0.2),
                ]
            )
        case _:
            assert_never(preset)
