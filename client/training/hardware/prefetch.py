"""Preparation of batches ahead of the step that needs them, in a thread beside the device's work.

A GPU computes while the processor waits, so the processor cuts the next batch meanwhile. On a CPU both would share
the same cores, so nothing is prepared ahead there.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from client.images import Finishing, Images, ImagesInTwoSteps

Key = TypeVar("Key")
Batch = TypeVar("Batch")


class Prefetcher(Generic[Key, Batch]):
    """Prepares batches, one ahead if `device` computes beside the processor. For use in a `with` statement."""

    def __init__(self, prepare: Callable[[Key], Batch], device: torch.device) -> None:
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(1, "prepare") if device.type == "cuda" else None
        self._ahead: tuple[Key, Future[Batch]] | None = None

    def get(self, key: Key, following: Key | None) -> Batch:
        """The batch `key`; `following` is prepared next, None: nothing is.

        An error of the preparation is raised by the call that asks for its batch.
        """
        ahead = self._ahead
        if ahead is not None and ahead[0] == key:
            self._ahead = None
            batch = ahead[1].result()
        else:
            batch = self._prepare(key)
        if (
            self._pool is not None
            and following is not None
            and (self._ahead is None or self._ahead[0] != following)
        ):
            self._ahead = following, self._pool.submit(self._prepare, following)
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Prepared:
    """The processor's part of a batch: images as they are copied, and which of them the device is still to mirror."""

    part_BCHW: Tensor
    mirrored_B: Tensor | None = None
    finishing: Finishing | None = None
    """What the device does with them. None: nothing is left to do but to copy."""

    def on_device(self, span: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """The batch from `start` to `stop`, copied without stopping the processor, and finished."""
        part_BCHW = self.part_BCHW[slice(*span)]
        copied_BCHW = part_BCHW.to(device, non_blocking=part_BCHW.is_pinned())
        if self.finishing is not None:
            assert self.mirrored_B is not None, "they come together"
            copied_BCHW = self.finishing(copied_BCHW, self.mirrored_B[slice(*span)])
        return copied_BCHW.to(dtype)


def on_host(
    images: Images, indices_B: Tensor, draws: torch.Generator | None, device: torch.device
) -> Prepared:
    """The processor's part of a batch: for a GPU squares of bytes in pinned memory, else the batch itself."""
    if device.type != "cuda":
        return Prepared(images.batch(indices_B, draws))
    if not isinstance(images, ImagesInTwoSteps):
        return Prepared(images.batch(indices_B, draws).pin_memory())
    return Prepared(*images.squares(indices_B, draws, pinned=True), images.finishing)
