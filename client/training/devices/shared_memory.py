"""Memory that two processes of this site see: a file without a name that lies in memory only.

/dev/shm is not used: containers have 64 MiB of it. Nothing is written to a disk, and the memory is gone with the last
process that has it open.
"""

import mmap
import os

import torch
from torch import Tensor


class SharedMemory:
    """Grows as it is asked for more; what was handed out before stays valid and shows the same memory."""

    def __init__(self, descriptor: int) -> None:
        """Of an open file descriptor, which this object does not close."""
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None

    def view(self, shape: tuple[int, ...], dtype: torch.dtype, start: int = 0) -> Tensor:
        """A tensor in this memory, `start` bytes from its begin."""
        count = int(torch.Size(shape).numel())
        needed = start + count * dtype.itemsize
        if self._map is None or len(self._map) < needed:
            if os.fstat(self._descriptor).st_size < needed:
                os.ftruncate(self._descriptor, needed)
            self._map = mmap.mmap(self._descriptor, os.fstat(self._descriptor).st_size)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start).view(shape)


def new_descriptor(name: str) -> int:
    """Of an empty memory, for this process and those that it hands the descriptor to."""
    return os.memfd_create(name)
