"""Every image of a site, decoded once and kept as bytes, so that no epoch decodes a JPEG twice.

What is kept is the square that crops are taken from, as uint8: a quarter of what normalised
floats would take. Up to a limit it lies in memory, above it in a memory-mapped file
(`client/data/image_cache.py`), whose name is a hash of the preparation and of what the file system says
of each image: path, size, and when its content and its entry were changed. A restarted trainer
finds it again, and a changed image or another size makes another file.

Not a hash of the images' bytes, which would be safe as well: to compute it every start would read the
whole data set, over a network for minutes, to save decoding after a move. A file that is replaced under
its name, size and time of change (`cp -p`, `rsync -t`) is recognised by its ctime, which
programs cannot set; the price is that after a chmod the images are decoded again.
"""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import nibabel
import numpy as np
import PIL
import pydicom
import torch

from client.config import CacheConfig
from client.data import image_cache
from client.data.augment import change_into, draw
from client.data.decoding import decode
from client.data.manifest import ImageRow, Manifest, Side, refuse
from client.data.progress import shown
from client.data.references import BadImage
from client.data.summary import summary
from client.images import Finishing, Preprocessing
from common.config import Augmentation
from common.errors import SiteDataError
from common.log import event
from common.wire import ImageSummary

T = TypeVar("T")
R = TypeVar("R")

# N images of the site, B of a batch, C channels, R stored pixels a side, S pixels a side of the
# encoder's input.

_FORMAT = 4
"""Raised when decoding changes, so that files of older versions are not taken for new ones."""
_DECODERS = (PIL.__version__, nibabel.__version__, pydicom.__version__)
"""Another version of these may decode to other values."""
_MOST_WAITING, _MOST_WAITING_BYTES = 256, 2**26
"""Images that are being decoded or wait for one before them to be written."""


class ImageStore:
    """The decoded images of one site, for one preparation."""

    def __init__(self, manifest: Manifest, preprocessing: Preprocessing, pixels_NRRC: torch.Tensor) -> None:
        self.manifest = manifest
        self.preprocessing = preprocessing
        self._pixels_NRRC = pixels_NRRC
        index = {name: number for number, name in enumerate(manifest.classes)}
        self._labels_N = torch.tensor([index[row.label] for row in manifest.rows], dtype=torch.int64)

    @classmethod
    def build(
        cls,
        manifest: Manifest,
        preprocessing: Preprocessing,
        cache: CacheConfig,
        state_dir: Path,
        num_threads: int | None = None,
    ) -> "ImageStore":
        """Decode all images of a manifest that has been split.

        Raises SiteDataError that names every bad image, and StorageError if the disk is full.
        """
        side = preprocessing.stored_size
        num_bytes = len(manifest.rows) * side * side * 3
        if num_bytes <= cache.memory_mib * 2**20:
            pixels_NRRC = _in_memory(manifest.rows, preprocessing, num_threads)
        else:
            pixels_NRRC = _on_disk(manifest.rows, preprocessing, cache, state_dir, num_threads)
        return cls(manifest, preprocessing, pixels_NRRC)

    def images(self, side: Side | None, augmentation: Augmentation = "none") -> "StoredImages":
        """The images of one side of the split, or of all, in the manifest's order."""
        rows_N = torch.tensor(
            [i for i, row in enumerate(self.manifest.rows) if side in (row.split, None)], dtype=torch.int64
        )
        return StoredImages(
            self._pixels_NRRC, rows_N, self._labels_N[rows_N], self.preprocessing, augmentation
        )

    def class_counts(self, side: Side) -> tuple[int, ...]:
        """Images per class on one side, in the study's order."""
        return self.manifest.class_counts(side)

    def summary(self, min_cell: int | None) -> ImageSummary | None:
        """Sizes and colours of the images; None without any."""
        return summary(self.manifest.rows, self._pixels_NRRC, min_cell)


class StoredImages:
    """One side of the split, as `client.images.Images` describes it."""

    def __init__(
        self,
        pixels_NRRC: torch.Tensor,
        rows_N: torch.Tensor,
        labels_N: torch.Tensor,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
    ) -> None:
        self._pixels_NRRC = pixels_NRRC
        self._rows_N = rows_N
        self._labels_N = labels_N
        self._size = preprocessing.image_size
        self._mean_C11 = torch.tensor(preprocessing.mean).view(3, 1, 1)
        self._std_C11 = torch.tensor(preprocessing.std).view(3, 1, 1)
        self._augmentation = augmentation

    @property
    def labels_N(self) -> torch.Tensor:
        """int64 class indices in the study's order."""
        return self._labels_N

    def batch(self, indices_B: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """float32 (B, 3, S, S), normalised; augmented with `generator`'s draws, else centre-cropped.

        The paper's augmentation: a crop from anywhere in the stored square, mirrored half the time.
        """
        rows_B, size = self._rows_N[indices_B].tolist(), self._size
        if (changed_BCSS := self._changed(rows_B, generator, normalised=True)) is not None:
            return changed_BCSS
        tops, lefts, flips = self._places(len(rows_B), generator)
        batch_BCSS = torch.empty(len(rows_B), 3, size, size)
        # One image after another, so that each is still in the processor's cache when it is normalised.
        for image_CSS, row, top, left, flip in zip(batch_BCSS, rows_B, tops, lefts, flips, strict=True):
            crop_CSS = self._pixels_NRRC[row, top : top + size, left : left + size].permute(2, 0, 1)
            self._normalise(image_CSS.copy_(crop_CSS.flip(2) if flip else crop_CSS))
        return batch_BCSS

    def squares(
        self, indices_B: torch.Tensor, generator: torch.Generator | None, *, pinned: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (B, 3, S, S), cut as in `batch`, and bool (B), which of them are to be mirrored.

        `pinned`: in memory that a GPU reads by itself.
        """
        rows_B, size = self._rows_N[indices_B].tolist(), self._size
        # Channels last, as they are stored, so that whole lines are copied.
        squares_BSSC = torch.empty(len(rows_B), size, size, 3, dtype=torch.uint8, pin_memory=pinned)
        if (changed_BCSS := self._changed(rows_B, generator, normalised=False)) is not None:
            squares_BSSC.copy_(changed_BCSS.permute(0, 2, 3, 1))
            return squares_BSSC.permute(0, 3, 1, 2), torch.zeros(len(rows_B), dtype=torch.bool)
        tops, lefts, flips = self._places(len(rows_B), generator)
        # numpy lets other threads work while it copies, and costs less per image than torch.
        stored_NRRC, out_BSSC = self._pixels_NRRC.numpy(), squares_BSSC.numpy()
        for place, (row, top, left) in enumerate(zip(rows_B, tops, lefts, strict=True)):
            out_BSSC[place] = stored_NRRC[row, top : top + size, left : left + size]
        return squares_BSSC.permute(0, 3, 1, 2), torch.tensor(flips, dtype=torch.bool)

    @property
    def finishing(self) -> Finishing:
        """What is left to do with `squares`."""
        return Finishing(self._mean_C11, self._std_C11)

    def _changed(
        self, rows_B: Sequence[int], generator: torch.Generator | None, *, normalised: bool
    ) -> torch.Tensor | None:
        """Images (B, 3, S, S) of an augmentation that does more than crop and mirror; None without one.

        Whole numbers from 0 to 255, if they are not to be normalised.
        """
        if generator is None or self._augmentation not in ("dermoscopy", "mri") or not rows_B:
            return None
        batch_BCSS = torch.empty(len(rows_B), 3, self._size, self._size)
        changes_B = draw(self._augmentation, len(rows_B), generator)
        for image_CSS, row, change in zip(batch_BCSS, rows_B, changes_B, strict=True):
            square_CRR = self._pixels_NRRC[row].permute(2, 0, 1)
            change_into(image_CSS, square_CRR, change)
            if normalised:
                self._normalise(image_CSS)
        return batch_BCSS

    def _normalise(self, images_CSS: torch.Tensor) -> torch.Tensor:
        """In place."""
        return images_CSS.div_(255).sub_(self._mean_C11).div_(self._std_C11)

    def _places(
        self, num_images: int, generator: torch.Generator | None
    ) -> tuple[list[int], list[int], list[bool]]:
        spare = self._pixels_NRRC.shape[1] - self._size
        if generator is None or self._augmentation == "none":
            middle = [spare // 2] * num_images
            return middle, middle, [False] * num_images
        tops_B = torch.randint(spare + 1, (num_images,), generator=generator)
        lefts_B = torch.randint(spare + 1, (num_images,), generator=generator)
        flips_B = torch.rand(num_images, generator=generator) < 0.5
        return tops_B.tolist(), lefts_B.tolist(), flips_B.tolist()


# --- where the bytes lie -------------------------------------------------------------------


def _in_memory(
    rows: Sequence[ImageRow], preprocessing: Preprocessing, num_threads: int | None
) -> torch.Tensor:
    side = preprocessing.stored_size
    kept = np.empty((len(rows), side, side, 3), np.uint8)
    for number, square in enumerate(_decoded(rows, preprocessing, num_threads)):
        kept[number] = square
    return torch.from_numpy(kept)


def _on_disk(
    rows: Sequence[ImageRow],
    preprocessing: Preprocessing,
    cache: CacheConfig,
    state_dir: Path,
    num_threads: int | None,
) -> torch.Tensor:
    side = preprocessing.stored_size
    shape = (len(rows), side, side, 3)
    num_bytes = len(rows) * side * side * 3
    if num_bytes > cache.disk_mib * 2**20:
        raise SiteDataError(
            f"{len(rows)} decoded images of {side} x {side} pixels need {num_bytes / 2**20:,.0f} MiB, "
            f"more than cache.disk_mib={cache.disk_mib} and cache.memory_mib={cache.memory_mib}; "
            "raise one of them in the site's YAML."
        )
    kept = image_cache.keep(
        state_dir / "images",
        identity(rows, preprocessing),
        shape,
        lambda: _decoded(rows, preprocessing, num_threads),
        cache.disk_mib * 2**20,
        num_threads,
    )
    return torch.from_numpy(kept)


def identity(rows: Sequence[ImageRow], preprocessing: Preprocessing) -> str:
    """Changes with the files, their order, the preparation and the decoders, but not with labels or split."""
    files = [(row.image.key, row.image.how, *map(_size_and_times, row.image.files)) for row in rows]
    what = [_FORMAT, _DECODERS, preprocessing.stored_size, preprocessing.interpolation, files]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _size_and_times(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1, -1  # decoding will say what is wrong, together with all other bad images
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


# --- decoding ------------------------------------------------------------------------------


def _decoded(
    rows: Sequence[ImageRow], preprocessing: Preprocessing, num_threads: int | None
) -> Iterator[decode.Pixels]:
    """Each image's square, in order. Raises SiteDataError at the end if any image was bad."""
    size, interpolation = preprocessing.stored_size, preprocessing.interpolation

    def attempt(row: ImageRow) -> decode.Pixels | str:
        try:
            return decode.decode(row.image, size, interpolation)
        except BadImage as bad:
            return f"{row.source}: {row.image.key} {bad}"

    problems: list[str] = []
    started = time.monotonic()
    num_waiting = max(1, min(_MOST_WAITING, _MOST_WAITING_BYTES // (3 * size * size)))
    # Pillow decodes and resizes without the interpreter's lock, so threads do.
    pool = ThreadPoolExecutor(num_threads or os.cpu_count(), "decode")
    try:
        for outcome in shown(_in_order(pool, attempt, rows, num_waiting), len(rows), "images decoded"):
            if isinstance(outcome, str):
                problems.append(outcome)
            elif not problems:
                yield outcome
    finally:
        pool.shutdown(cancel_futures=True)  # after an error (a full disk) the rest is not needed
    if problems:
        refuse(
            f"{len(problems)} of {len(rows)} images cannot be used",
            problems,
            "Repair or replace these files, or remove them from the data set.",
        )
    seconds = time.monotonic() - started
    event(f"{len(rows)} images decoded in {seconds:.1f} s", images=len(rows), seconds=seconds)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Sequence[T], num_waiting: int
) -> Iterator[R]:
    """As `pool.map`, but never further ahead of what was taken than `num_waiting`."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= num_waiting:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
