"""NIfTI volumes of heads, read within limits and brought to 8 bits inside the brain.

Scanners scale MRI arbitrarily, so each volume is scaled on its own: the 1st to the 99th percentile
of the brain (what is not 0, as in skull-stripped data) becomes 1 to 255, and the background
stays 0. All volumes are turned to the same orientation (RAS), so the third axis is axial.

A file is unpacked piece by piece and no further than its header says it goes, and a header that says
more than the limit is refused, so a small .nii.gz cannot fill the memory.
"""

import gzip
import threading
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data.references import BadImage, NiftiSlice

MOST_VOXELS = 2**26
"""512 x 512 x 256; BraTS has 240 x 240 x 155."""
_HEADER, _MOST_EXTENSION = 348, 2**24
"""Bytes, and bytes between header and voxels."""
_PIECE = 2**20
_ENDS = (1, 99)
_KEPT = 6
"""Volumes of one and the next patient, three channels each, as 8 bits: 54 MiB for BraTS."""

Bytes3 = npt.NDArray[np.uint8]


def picture(reference: NiftiSlice) -> Image.Image:
    """One axial slice as RGB, front up. Raises BadImage."""
    volumes = [scaled(path) for path in reference.channels]
    shapes = {volume.shape for volume in volumes}
    if len(shapes) > 1:
        raise BadImage(f"has channels of different sizes: {', '.join(map(_size, sorted(shapes)))}")
    if not 0 <= reference.index < volumes[0].shape[2]:
        raise BadImage(f"has {volumes[0].shape[2]} slices, found no slice {reference.index}")
    slice_XYC = np.stack([volume[:, :, reference.index] for volume in volumes], axis=2)
    return Image.fromarray(np.ascontiguousarray(slice_XYC.transpose(1, 0, 2)[::-1]))


def scaled(path: Path) -> Bytes3:
    """A volume as 8 bits, from memory if it was among the last few. Raises BadImage."""
    try:
        status = path.stat()
    except OSError as error:
        raise BadImage(f"has no file {path.name} ({error.strerror})") from error
    # One at a time: slices of one volume come one after another, and several would fill the memory.
    with _LOCK:
        return _scaled(path, status.st_size, status.st_mtime_ns)


def load(path: Path) -> npt.NDArray[np.float32]:
    """A volume's values, X to the right, Y to the front, Z up. Raises BadImage."""
    try:
        packed = path.name.lower().endswith(".gz")
        with gzip.open(path) if packed else path.open("rb") as file:
            values = _voxels(file, path.name)
    except BadImage:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise BadImage(f"has a file {path.name} that is cut short or damaged; copy it again") from error
    except Exception as error:
        raise BadImage(
            f"has a file {path.name} that cannot be read as NIfTI ({type(error).__name__}); convert it again"
        ) from error
    np.nan_to_num(values, copy=False, posinf=0, neginf=0)
    return values


_LOCK = threading.Lock()


@lru_cache(maxsize=_KEPT)
def _scaled(path: Path, _size_of_file: int, _changed: int) -> Bytes3:
    values = load(path)
    brain = values != 0
    if not brain.any():
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(values[brain], _ENDS, overwrite_input=True)
    values -= low
    values *= 254 / max(float(high - low), 1e-6)
    np.clip(values, 0, 254, out=values)
    values += 1.5  # rounds; the darkest of the brain is 1
    values[~brain] = 0
    return values.astype(np.uint8)


@np.errstate(all="ignore")  # a file may hold any number, infinite ones included
def _voxels(file: IO[bytes] | gzip.GzipFile, name: str) -> npt.NDArray[np.float32]:
    """Values on the scale of the file, turned to RAS."""
    start = file.read(_HEADER)
    if len(start) < _HEADER:
        raise BadImage(f"has a file {name} that is shorter than the header of a NIfTI; copy it again")
    header: Any = nibabel.Nifti1Header(start, check=False)  # type: ignore[no-untyped-call]
    if bytes(header["magic"].tobytes())[:3] != b"n+1":
        raise BadImage(f"has a file {name} that is no NIfTI-1 file; convert it")
    shape = tuple(int(size) for size in header["dim"][1 : 1 + max(0, min(7, int(header["dim"][0])))])
    if len(shape) < 3 or min(shape) < 1 or any(size != 1 for size in shape[3:]):
        raise BadImage(f"has a file {name} of {_size(shape)} voxels; expected one volume of three axes")
    num_voxels = shape[0] * shape[1] * shape[2]
    if num_voxels > MOST_VOXELS:
        raise BadImage(f"has a file {name} of {num_voxels:,} voxels; expected at most {MOST_VOXELS:,}")
    kind = header.get_data_dtype()
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise BadImage(f"has a file {name} of {kind} voxels; expected whole or floating-point numbers")
    offset = float(header["vox_offset"])
    if not _HEADER <= offset <= _HEADER + _MOST_EXTENSION:
        raise BadImage(f"has a file {name} whose voxels begin at an impossible place; convert it again")
    file.read(int(offset) - _HEADER)
    values = np.empty(num_voxels, np.float32)
    for place in range(0, num_voxels, _PIECE):
        part = values[place : place + _PIECE]
        data = file.read(part.size * kind.itemsize)
        if len(data) < part.size * kind.itemsize:
            missing = (num_voxels - place) * kind.itemsize - len(data)
            raise BadImage(f"has a file {name} that ends {missing:,} bytes too early; copy it again")
        part[:] = np.frombuffer(data, kind)
    slope, intercept = header.get_slope_inter()
    if slope is not None:
        values *= slope
        values += intercept
    turn = nibabel.io_orientation(header.get_best_affine())  # type: ignore[no-untyped-call]
    return np.asarray(nibabel.apply_orientation(values.reshape(shape[:3], order="F"), turn))  # type: ignore[no-untyped-call]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no"
