"""MedMNIST: small labelled images of many kinds in one numpy archive each, with a published split.

Layout: `NAME.npz` (28 pixels) or `NAME_64.npz`, `_128`, `_224`, with `train_images`, `val_images`,
`test_images` as (N, H, W) or (N, H, W, 3) of uint8 and `..._labels` as (N, 1). Classes are the numbers
0, 1, ... in the order of the data set's page; `label_map: {0: adipose, ...}` names them. Groups are not
published: the authors split by patient where their source did. Sets with several labels an
image (ChestMNIST) and with volumes are refused.

Yang et al. 2023, doi:10.1038/s41597-022-01721-8; CC BY 4.0, DermaMNIST CC BY-NC 4.0.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from client.config import MedMnistData
from client.data.decoding import npz
from client.data.manifest import ImageRow
from client.data.readers.rows import ReadRows, Unused
from client.data.references import BadImage, NpzEntry
from common.errors import SiteDataError

_SIDES = ("train", "val", "test")
_ROUNDING, _MOST_CLASSES = 1e-3, 2**16


def read_medmnist(config: MedMnistData) -> ReadRows:
    """Rows in the archive's order. Raises SiteDataError if the archive is none of MedMNIST's."""
    try:
        arrays = npz.arrays(config.archive)
        sides = [side for side in _SIDES if f"{side}_images" in arrays]
        if not sides:
            names = ", ".join(sorted(arrays)) or "nothing"
            raise BadImage(f"holds {names}; expected train_images and train_labels")  # noqa: TRY301
        rows = [row for side in sides for row in _rows(config, side, arrays)]
    except BadImage as bad:
        raise SiteDataError(f"{config.archive} {bad}") from bad
    used = {f"{side}_{what}" for side in sides for what in ("images", "labels")}
    others = tuple(sorted(set(arrays) - used))
    return ReadRows(rows, [], [Unused("arrays that are no images of MedMNIST", others)] if others else [])


def _rows(config: MedMnistData, side: str, arrays: dict[str, npz.Header]) -> Iterator[ImageRow]:
    images = f"{side}_images"
    npz.check_images(images, arrays[images])
    if f"{side}_labels" not in arrays:
        raise BadImage(f"has {images} but no {side}_labels; copy it again")
    labels = _whole_numbers(npz.whole(config.archive, f"{side}_labels"))
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or labels.shape[1:] not in ((), (1,)):
        raise BadImage(
            f"has {labels.dtype} labels of shape {labels.shape}; expected one number an image. Sets with several "
            "labels an image cannot be used"
        )
    if len(labels) != arrays[images].shape[0]:
        raise BadImage(
            f"has {arrays[images].shape[0]} images but {len(labels)} labels for {side}; copy it again"
        )
    for index, label in enumerate(np.ravel(labels)):
        yield ImageRow(
            image=NpzEntry(config.archive, images, index),
            label=str(int(label)),
            group=None,
            split=side,
            source=f"{config.archive.name} {images}[{index}]",
        )


def _whole_numbers(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Labels that a program saved as floating-point numbers or as true and false, as whole numbers if they are."""
    if labels.dtype.kind == "b":
        return labels.astype(np.uint8)
    if labels.dtype.kind != "f" or not np.isfinite(labels).all():
        return labels
    whole = np.rint(labels)
    is_near = bool((np.abs(labels - whole) < _ROUNDING).all() and (np.abs(whole) < _MOST_CLASSES).all())
    return whole.astype(np.int64) if is_near else labels
