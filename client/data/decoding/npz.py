"""Arrays in a numpy archive (.npz), read as a stream.

The largest MedMNIST archives unpack to 13 GB, and a zip can be made to unpack to anything. So no
array is ever unpacked as a whole: images are read one after another, in the order of
the archive, and a few are kept for threads that lag behind. Labels are
read as a whole, within a limit.
"""

import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data.decoding import first_bytes
from client.data.references import BadImage, NpzEntry

MOST_PIXELS = 2**24
"""Of an image: 4,096 x 4,096."""
MOST_IMAGES = 2**20
_MOST_LABEL_BYTES, _MOST_HEADER = 2**26, 10_000
T = TypeVar("T")
_KEPT = 1024
_KEPT_BYTES = 2**28


@dataclass(frozen=True)
class Header:
    """Header of an array: its shape and type."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def picture(reference: NpzEntry) -> Image.Image:
    """One image, grey or RGB. Raises BadImage."""
    status = reference.path.stat()
    with _LOCK:
        stream = _STREAMS.get((reference.path, reference.array, status.st_size, status.st_mtime_ns))
        return Image.fromarray(stream.image(reference.index))


def arrays(path: Path) -> dict[str, Header]:
    """Names and headers of all arrays. Raises BadImage."""

    def read() -> dict[str, Header]:
        with path.open("rb") as file:
            kind = first_bytes.what(file.read(first_bytes.NUM_BYTES))
        if kind not in (None, "a zip archive"):
            raise BadImage(f"is {kind}, and no numpy archive (.npz); fetch or save it again")
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")][:100]
            if len(set(names)) < len(names):
                raise BadImage("holds an array twice under one name; save it again")
            return {name.removesuffix(".npy"): _header_of(archive, name) for name in names}

    return _guarded(read)


def whole(path: Path, array: str) -> npt.NDArray[Any]:
    """A small array. Raises BadImage."""

    def read() -> npt.NDArray[Any]:
        with zipfile.ZipFile(path) as archive, _opened(archive, f"{array}.npy") as file:
            header = _header(file)
            num_bytes = _product(header.shape) * header.dtype.itemsize
            if num_bytes > _MOST_LABEL_BYTES:
                raise BadImage(
                    f"has an array {array} of {num_bytes:,} bytes; expected at most {_MOST_LABEL_BYTES:,}"
                )
            return _exactly(file, num_bytes, header.dtype).reshape(header.shape)

    return _guarded(read)


class _Stream:
    """One array, read from front to back; begins again for an image that is no longer kept."""

    def __init__(self, path: Path, array: str, _size: int, _changed: int) -> None:
        self._path, self._array = path, array
        self._file: IO[bytes] | None = None
        self._next = 0
        self._recent: OrderedDict[int, npt.NDArray[np.uint8]] = OrderedDict()

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """(H, W) or (H, W, 3). Raises BadImage."""
        if index not in self._recent:
            try:
                _guarded(lambda: self._read_up_to(index))
            except BaseException:
                self.close()
                raise
        return self._recent[index]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._next = None, 0
        self._recent.clear()

    def _read_up_to(self, index: int) -> None:
        if self._file is None or index < self._next:
            self.close()
            # An open member keeps the archive's file open, and closes it.
            with zipfile.ZipFile(self._path) as archive:
                self._file = _opened(archive, f"{self._array}.npy")
            self._header = _header(self._file)
            check_images(self._array, self._header)
        shape = self._header.shape[1:]
        num_bytes = _product(shape)
        if index >= self._header.shape[0]:
            raise BadImage(f"has {self._header.shape[0]} images in {self._array}, found no image {index}")
        while self._next <= index:
            read = _exactly(self._file, num_bytes, np.dtype(np.uint8)).reshape(shape)
            self._recent[self._next] = read[:, :, 0] if shape[2:] == (1,) else read
            self._next += 1
            while len(self._recent) > 1 and (
                len(self._recent) > _KEPT or len(self._recent) * num_bytes > _KEPT_BYTES
            ):
                self._recent.popitem(last=False)


class _Streams:
    """The last few arrays that were read from."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: OrderedDict[tuple[Path, str, int, int], _Stream] = OrderedDict()

    def get(self, key: tuple[Path, str, int, int]) -> _Stream:
        if key not in self._open:
            self._open[key] = _Stream(*key)
            while len(self._open) > self._most:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(key)
        return self._open[key]


_LOCK = threading.Lock()
_STREAMS = _Streams(most=2)


def check_images(array: str, header: Header) -> None:
    """Raises BadImage if these are no flat images of 8 bits."""
    shape = header.shape
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise BadImage(
            f"has {array} of shape {shape}, with the channels before the rows; expected (N, H, W) or (N, H, W, 3)"
        )
    is_3d = len(shape) == 5 or (len(shape) == 4 and shape[3] not in (1, 3))
    if is_3d:
        raise BadImage(
            f"has volumes in {array} ({' x '.join(map(str, shape))}); this software classifies flat images: "
            "take one of the 2-D data sets, or cut slices"
        )
    if len(shape) not in (3, 4) or header.dtype != np.uint8:
        raise BadImage(
            f"has {header.dtype} of shape {shape} in {array}; expected uint8 of (N, H, W) or (N, H, W, 3)"
        )
    if not 1 <= shape[1] * shape[2] <= MOST_PIXELS or shape[0] > MOST_IMAGES:
        raise BadImage(
            f"says {shape[0]:,} images of {shape[2]} x {shape[1]} pixels in {array}; expected at most "
            f"{MOST_IMAGES:,} of {MOST_PIXELS:,} pixels"
        )


def _opened(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # As numpy writes them; LZMA and others may ask for gigabytes before the first byte.
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadImage("is packed in another way than numpy's; save it again with numpy.savez_compressed")
    return archive.open(name)


def _header_of(archive: zipfile.ZipFile, name: str) -> Header:
    with _opened(archive, name) as file:
        return _header(file)


def _header(file: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise BadImage(f"is of version {version} of numpy's format; save it again")
    # numpy reads as much as the length says and compares it with a limit afterwards.
    length = file.read(2 if version == (1, 0) else 4)
    if int.from_bytes(length, "little") > _MOST_HEADER:
        raise BadImage("has an array with a header of an impossible length; copy it again")
    head = BytesIO(length + file.read(int.from_bytes(length, "little")))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(head, max_header_size=_MOST_HEADER)
    if dtype.hasobject or is_fortran:
        found = "Python objects" if dtype.hasobject else "arrays in Fortran order"
        raise BadImage(f"holds {found}; save plain C-ordered arrays of numbers")
    return Header(tuple(int(size) for size in shape), dtype)


def _exactly(file: IO[bytes], num_bytes: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise BadImage(f"ends after {len(data):,} of {num_bytes:,} bytes; copy it again")
    return np.frombuffer(data, dtype)


def _product(shape: tuple[int, ...]) -> int:
    product = 1  # of Python's own integers, which do not overflow
    for size in shape:
        product *= size
    if product < 0:
        raise BadImage(f"says an impossible shape {shape}; save it again")
    return product


def _guarded(read: Callable[[], T]) -> T:
    try:
        return read()
    except BadImage:
        raise
    except KeyError as error:
        raise BadImage("lacks an array that it should have; expected an archive of MedMNIST") from error
    except Exception as error:
        # zipfile, zlib and numpy answer a broken file with many kinds of error.
        raise BadImage(
            f"cannot be read as a numpy archive ({type(error).__name__}); copy it again"
        ) from error
