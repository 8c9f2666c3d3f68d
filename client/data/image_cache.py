"""File of decoded images, mapped into memory; it outlives the process that decoded them.

One file holds the pixels, then a CRC-32 of every image, then a tail that says how many there are. It is
written under another name, flushed and renamed, and read as a whole on every start: a length alone does not
show that a block was lost in a power cut, or a bit on an old disk. A damaged file is made again.
The reading is not lost, since it fills the page cache for the first epoch.

The file that is being written is its own lock (flock). Another process that needs the same images waits
and then uses them. The kernel releases the lock of a process that was killed, so a file that it left is
unlocked, and a file that a living process writes is never taken for a leftover.
"""

import errno
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import numpy.typing as npt

from client.data.progress import shown
from common.errors import StorageError
from common.log import event, warn
from common.polling import POLL_S

Bytes: TypeAlias = npt.NDArray[np.uint8]
Shape: TypeAlias = tuple[int, int, int, int]
"""Images, then the three axes of one."""

_ENDING, _UNFINISHED = ".rgb", ".partial"
_TAIL = struct.Struct("<16s4QI")
"""Mark, shape, CRC-32 of the CRC-32s."""
_MARK = b"consilium-images"
_TOGETHER = 64
"""Images that one thread reads in one go."""
_PATIENCE_S = 3600.0
"""Seconds for which the other process may write nothing before a waiting one gives up."""


def keep(
    folder: Path,
    name: str,
    shape: Shape,
    images: Callable[[], Iterable[Bytes]],
    most_bytes: int,
    num_threads: int | None = None,
) -> Bytes:
    """The images of this name, from their file; it is made from `images()` if there is no good one.

    All files under `folder` take at most `most_bytes` together, this one included: the longest unused
    go first. Raises StorageError, and whatever `images` raises. The array is to be read only.
    """
    path = folder / f"{name}{_ENDING}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept, _ = _kept(path, shape, num_threads)
        if kept is not None:
            return kept
        with _claimed(path.with_suffix(_UNFINISHED)) as file:
            # Another process may have finished or repaired the file while this one waited.
            kept, problem = _kept(path, shape, num_threads)
            if kept is not None:
                return kept
            if problem:
                warn(f"the kept file of {shape[0]} decoded images {problem}; it is made again")
                path.unlink(missing_ok=True)
            _free_space(folder, file, most_bytes - _size(shape))
            _write(file, shape, images)
            path.with_suffix(_UNFINISHED).rename(path)
            return _mapped(file, shape)
    except OSError as error:
        raise StorageError(
            f"{_size(shape) / 2**20:,.0f} MiB of decoded images could not be written to {folder}: "
            f"{error.strerror}. Free some space there, choose another state_dir or raise cache.memory_mib."
        ) from error


# --- reading -----------------------------------------------------------------------------------


def _kept(path: Path, shape: Shape, num_threads: int | None) -> tuple[Bytes | None, str | None]:
    """The images, or what is wrong with their file; neither if there is none."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None, None
    started = time.monotonic()
    # One opening for both: the mapped bytes are those that were checked, even if the file is replaced.
    with file:
        if problem := _problem(file, shape, num_threads):
            return None, problem
        os.utime(file.fileno())  # used now
        event(
            f"{shape[0]} decoded images kept from an earlier start, read again in "
            f"{time.monotonic() - started:.1f} s",
            images=shape[0],
        )
        return _mapped(file, shape), None


def _problem(file: IO[bytes], shape: Shape, num_threads: int | None) -> str | None:
    num_images, num_bytes = shape[0], _size(shape)
    each = shape[1] * shape[2] * shape[3]
    handle = file.fileno()
    actual = os.fstat(handle).st_size
    if actual != num_bytes:
        return f"has {actual:,} bytes, expected {num_bytes:,}"
    sums = os.pread(handle, 4 * num_images, num_images * each)
    if os.pread(handle, _TAIL.size, num_bytes - _TAIL.size) != _tail(shape, sums):
        return "was never finished, or its end is damaged"
    sums_N = np.frombuffer(sums, "<u4")

    def whole(start: int) -> list[bool]:
        places = range(start, min(start + _TOGETHER, num_images))
        return [zlib.crc32(os.pread(handle, each, place * each)) == sums_N[place] for place in places]

    try:
        with ThreadPoolExecutor(num_threads or os.cpu_count(), "verify") as pool:
            blocks = pool.map(whole, range(0, num_images, _TOGETHER))
            each_image = shown((good for block in blocks for good in block), num_images, "kept images read")
            num_bad = sum(not good for good in each_image)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return f"is damaged in {num_bad} image(s)" if num_bad else None


def _mapped(file: IO[bytes], shape: Shape) -> Bytes:
    # Copy-on-write, because torch wants memory that it could write to; nothing is ever written.
    return np.memmap(file, np.uint8, mode="c", shape=shape)


# --- writing -----------------------------------------------------------------------------------


def _write(file: IO[bytes], shape: Shape, images: Callable[[], Iterable[Bytes]]) -> None:
    """Plain writing, not a memory map: on a full disk a map kills the process instead of raising."""
    file.truncate(0)  # of a process that was killed
    _reserve(file, _size(shape))
    sums = bytearray()
    for image in images():
        assert image.shape == shape[1:]
        data = image.tobytes()
        file.write(data)
        sums += zlib.crc32(data).to_bytes(4, "little")
    assert len(sums) == 4 * shape[0]
    file.write(sums)
    file.write(_tail(shape, bytes(sums)))
    file.flush()
    os.fsync(file.fileno())


def _reserve(file: IO[bytes], num_bytes: int) -> None:
    """A disk that is too full says so now, not after an hour of decoding."""
    try:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not every file system can
            raise


def _tail(shape: Shape, sums: bytes) -> bytes:
    return _TAIL.pack(_MARK, *shape, zlib.crc32(sums))


def _size(shape: Shape) -> int:
    return shape[0] * (shape[1] * shape[2] * shape[3] + 4) + _TAIL.size


def _free_space(folder: Path, ours: IO[bytes], most_bytes: int) -> None:
    """Delete what killed processes left, then the longest unused files until the others fit.

    A file that another process has mapped can go as well: it keeps its pages until it ends.
    """
    taken = 0
    for partial in folder.glob(f"*{_UNFINISHED}"):
        with suppress(FileNotFoundError), partial.open("rb") as other:
            if _is_at(ours, partial):
                continue
            if _locked(other):
                if _is_at(other, partial):
                    partial.unlink()
            else:
                taken += os.fstat(other.fileno()).st_size
    kept: list[tuple[int, int, Path]] = []
    for path in folder.glob(f"*{_ENDING}"):
        with suppress(FileNotFoundError):
            status = path.stat()
            kept.append((status.st_mtime_ns, status.st_size, path))
    taken += sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if taken <= most_bytes:
            return
        path.unlink(missing_ok=True)
        taken -= size


# --- one writer --------------------------------------------------------------------------------


@contextmanager
def _claimed(partial: Path) -> Iterator[IO[bytes]]:
    """`partial`, open, and locked against other writers; afterwards it is removed, unless it was renamed.

    Waits as long as another process writes. Raises StorageError if that one makes no progress.
    """
    is_logged = False
    while True:
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            if not _locked(file):
                if not is_logged:
                    event("another process is decoding the same images; waiting for it")
                    is_logged = True
                _be_patient(file)
                continue
            if not _is_at(file, partial):
                continue  # renamed or removed between opening and locking
            try:
                yield file
            finally:
                if _is_at(file, partial):
                    partial.unlink()
                # Released here, because the map of what was written keeps the file open, and so the lock.
                fcntl.flock(file, fcntl.LOCK_UN)
            return


def _be_patient(file: IO[bytes]) -> None:
    idle_s = time.time() - os.fstat(file.fileno()).st_mtime
    if idle_s > _PATIENCE_S:
        raise StorageError(
            f"another process with this state_dir began to decode the same images and has written nothing for "
            f"{idle_s / 60:.0f} minutes; end it, then start again"
        )
    time.sleep(POLL_S)


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
