"""Augmentation: random changes to training images, by preset.

Turn, mirror image and crop are one affine map, so an image is read once; light and colour are one 3 x 4
matrix. Every draw comes from the caller's generator, so that a step can be taken again bit for bit.
`paper`'s crop and flip need no map and are done where the pixels lie (`client/data/store.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import torch
from torch.nn.functional import grid_sample

Preset: TypeAlias = Literal["dermoscopy", "mri"]


@dataclass(frozen=True)
class Ranges:
    """How far a preset may change an image."""

    angle: float
    """Largest turn to either side, in degrees."""
    upside_down: bool
    """Whether the image may be mirrored from top to bottom as well."""
    area: float
    """Smallest part of the square that a crop keeps."""
    ratio: float
    """Largest ratio of the crop's width to its height; its inverse is the smallest."""
    light: float
    """Brightness and contrast are times 1 - light to 1 + light."""
    saturation: float
    hue: float
    """Largest shift, as a part of the circle of colours."""
    edge: Literal["reflection", "zeros"]
    """What lies outside of the square."""


_RANGES: dict[Preset, Ranges] = {
    # A lesion has no up or down; light and camera tint it.
    "dermoscopy": Ranges(180, True, 0.7, 1.1, 0.2, 0.2, 0.05, "reflection"),
    # Heads are upright, nearly mirror images; scanners differ in brightness, not in colour.
    "mri": Ranges(15, False, 0.8, 1.05, 0.2, 0.0, 0.0, "zeros"),
}


@dataclass(frozen=True)
class Change:
    """What is done to one image."""

    map_23: Sequence[Sequence[float]]
    """Where a pixel of the result lies in the square; both sides count from -1 to 1, x before y."""
    edge: Literal["reflection", "zeros"]
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """In radians."""


def draw(preset: Preset, num_images: int, generator: torch.Generator) -> list[Change]:
    """A change for each image."""
    draws_BK = torch.rand(num_images, 11, dtype=torch.float64, generator=generator)
    return [_change(_RANGES[preset], draws_K) for draws_K in draws_BK.tolist()]


def _change(ranges: Ranges, draws_K: list[float]) -> Change:
    turn, mirror, flip, area, ratio, left, top, *light = draws_K
    signed = [2 * draw - 1 for draw in light]
    kept = ranges.area + (1 - ranges.area) * area
    wide = ranges.ratio ** (2 * ratio - 1)
    width, height = min(1.0, math.sqrt(kept * wide)), min(1.0, math.sqrt(kept / wide))
    x = (2 * left - 1) * (1 - width), width * (-1 if mirror < 0.5 else 1)
    y = (2 * top - 1) * (1 - height), height * (-1 if ranges.upside_down and flip < 0.5 else 1)
    angle = math.radians(ranges.angle * (2 * turn - 1))
    cos, sin = math.cos(angle), math.sin(angle)
    return Change(
        (
            (cos * x[1], -sin * y[1], cos * x[0] - sin * y[0]),
            (sin * x[1], cos * y[1], sin * x[0] + cos * y[0]),
        ),
        ranges.edge,
        brightness=1 + ranges.light * signed[0],
        contrast=1 + ranges.light * signed[1],
        saturation=1 + ranges.saturation * signed[2],
        hue=2 * math.pi * ranges.hue * signed[3],
    )


def change_into(image_CSS: torch.Tensor, square_CRR: torch.Tensor, change: Change) -> None:
    """Write the changed uint8 square (3, R, R) into a contiguous float32 image (3, S, S): whole numbers, 0 to 255."""
    pixels_CP = _placed(square_CRR.to(torch.float32), change, image_CSS.shape[-1]).view(3, -1)
    matrix_CC, rest_C1 = _light(pixels_CP, change)
    done_CP = image_CSS.view(3, -1)
    torch.addmm(rest_C1 + 0.5, matrix_CC, pixels_CP, out=done_CP)  # a half, to round down from
    done_CP.floor_().clamp_(0, 255)


def _placed(square_CRR: torch.Tensor, change: Change, size: int) -> torch.Tensor:
    """Bilinear. The square is at most a seventh larger than the result, so nothing needs to be smoothed first."""
    at_S = _centres(size)
    (xx, xy, x0), (yx, yy, y0) = change.map_23
    grid_2SS = torch.empty(2, size, size)  # x and y apart, as both are written and read in rows
    torch.add((at_S * xy + x0)[:, None], at_S * xx, out=grid_2SS[0])
    torch.add((at_S * yy + y0)[:, None], at_S * yx, out=grid_2SS[1])
    return grid_sample(
        square_CRR[None],
        grid_2SS.permute(1, 2, 0)[None],
        mode="bilinear",
        padding_mode=change.edge,
        align_corners=False,
    )[0]


@cache
def _centres(size: int) -> torch.Tensor:
    """Of the pixels on a side that runs from -1 to 1."""
    return (2 * torch.arange(size, dtype=torch.float32) + 1) / size - 1


def _light(pixels_CP: torch.Tensor, change: Change) -> tuple[torch.Tensor, torch.Tensor]:
    """Brightness, contrast and colour as a matrix (3, 3) and what is added to each channel (3, 1).

    In the space of grey and two colours (YIQ) they are a factor, a factor around the image's mean grey, and a
    turned and scaled plane, so their order makes no difference.
    """
    cos, sin = change.saturation * math.cos(change.hue), change.saturation * math.sin(change.hue)
    to_yiq_CC, from_yiq_CC = _yiq()
    colour_CC = from_yiq_CC @ torch.tensor([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ to_yiq_CC
    grey = float(to_yiq_CC[0] @ pixels_CP.mean(dim=1))
    rest_C1 = torch.full((3, 1), change.brightness * (1 - change.contrast) * grey)
    return change.brightness * change.contrast * colour_CC, rest_C1


@cache
def _yiq() -> tuple[torch.Tensor, torch.Tensor]:
    """From red, green and blue, and back (NTSC; grey as in ITU-R BT.601)."""
    to_yiq_CC = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    return to_yiq_CC, torch.linalg.inv(to_yiq_CC)
