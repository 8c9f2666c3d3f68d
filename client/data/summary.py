"""What a site's images look like from afar, bounded so that no patient stands out.

The channel means and deviations are taken from the squares that training keeps anyway, every fourth
pixel each way of every image, so nothing is decoded for them. Sizes are those of the images as they
are stored, which the squares no longer tell; they stand in the files' headers.

The smallest and the largest side are, by their nature, facts about single images. A site that counts
no fewer than k patients therefore tells the k-th smallest and the k-th largest instead, each patient
counted once: at least k patients have an image as small, or as large. With fewer than 2k patients
the two ends would be of the same ones, and no sizes are sent.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import assert_never

import torch
from PIL import Image

from client.data.decoding import dicom, nifti, npz
from client.data.decoding.decode import FORMATS
from client.data.manifest import ImageRow
from client.data.references import BadImage, DicomFrame, ImageReference, NiftiSlice, NpzEntry, PictureFile
from common.wire import ImageSummary, Sizes

STEP = 4
"""Every fourth pixel, each way, counts towards means and deviations."""
_DIGITS = 3
_CHUNK = 256
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


def summary(rows: Sequence[ImageRow], pixels_NRRC: torch.Tensor, min_cell: int | None) -> ImageSummary | None:
    """Summary of these images, whose stored squares are `pixels_NRRC`; None without any."""
    if not rows:
        return None
    mean, std = channel_figures(pixels_NRRC)
    return ImageSummary(sizes=sizes(rows, min_cell or 1), mean=mean, std=std)


def channel_figures(
    pixels_NRRC: torch.Tensor,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of red, green and blue in [0, 1], to three digits.

    Summed as whole numbers, so the same images give the same figures in any order.
    """
    sum_C, squares_C, number = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 0
    for start in range(0, len(pixels_NRRC), _CHUNK):
        pixels_PC = pixels_NRRC[start : start + _CHUNK, ::STEP, ::STEP].reshape(-1, 3).to(torch.int32)
        sum_C += pixels_PC.sum(dim=0, dtype=torch.int64)
        squares_C += (pixels_PC * pixels_PC).sum(dim=0, dtype=torch.int64)
        number += len(pixels_PC)
    mean_C = sum_C.double() / number
    std_C = (squares_C.double() / number - mean_C**2).clamp(min=0).sqrt()
    return _rounded(mean_C), _rounded(std_C)


def _rounded(values_C: torch.Tensor) -> tuple[float, float, float]:
    red, green, blue = (round(value / 255, _DIGITS) for value in values_C.tolist())
    return red, green, blue


# --- sizes -----------------------------------------------------------------------------------


def sizes(rows: Sequence[ImageRow], least: int) -> Sizes | None:
    """The range of sides that at least `least` patients share at each end, None if too few are there."""
    sides_by_group: dict[object, list[tuple[int, int]]] = {}
    for number, row in enumerate(rows):
        sides_by_group.setdefault(row.group or number, []).append(size(row.image))
    if len(sides_by_group) < (2 * least if least > 1 else 1):
        return None
    return Sizes(
        width=_ends([[width for width, _ in group] for group in sides_by_group.values()], least),
        height=_ends([[height for _, height in group] for group in sides_by_group.values()], least),
    )


def _ends(groups: Iterable[Sequence[int]], least: int) -> tuple[int, int]:
    sides = list(groups)
    low = sorted(min(group) for group in sides)[least - 1]
    return low, sorted((max(group) for group in sides), reverse=True)[least - 1]


def size(reference: ImageReference) -> tuple[int, int]:
    """Width and height of an image as it is shown, from the header of its file. Raises BadImage."""
    match reference:
        case PictureFile(path):
            return _picture_size(path)
        case DicomFrame(path, frame):
            return _dicom_sizes(path, path.stat().st_mtime_ns)[frame]
        case NiftiSlice(channels):
            return nifti.grid(channels[0]).shape[:2]
        case NpzEntry(path, array):
            return _archive_size(path, array, path.stat().st_mtime_ns)
        case _:
            assert_never(reference)


def _picture_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (width, height)
    except (OSError, ValueError, SyntaxError) as error:
        raise BadImage(f"cannot be opened ({type(error).__name__})") from error


@lru_cache(maxsize=8)
def _dicom_sizes(path: Path, _changed: int) -> list[tuple[int, int]]:
    return dicom.shown_sizes(path)


@lru_cache(maxsize=8)
def _archive_size(path: Path, array: str, _changed: int) -> tuple[int, int]:
    _, height, width, *_ = npz.arrays(path)[array].shape
    return width, height
