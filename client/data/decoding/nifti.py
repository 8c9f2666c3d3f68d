"""NIfTI volumes of heads, read within limits and brought to 8 bits inside the brain.

Scanners scale MRI arbitrarily, so each volume is scaled on its own: the 1st to the 99th percentile
of the brain (what is not 0, as in skull-stripped data) becomes 1 to 255, and the background
stays 0; some programs write it as another value, which then stands in all eight corners. All volumes are turned to the
same orientation (RAS), so the third axis is axial.

What a file is, packed or not, NIfTI-1 or NIfTI-2, its first bytes say and not its name. Volumes that are used
together must lie on one grid. Programs round differently, so positions may differ a little, but
not as much as a shifted, turned or resampled volume differs.

A file is unpacked piece by piece and no further than its header says it goes, and a header that says
more than the limit is refused, so a small .nii.gz cannot fill the memory.
"""

import gzip
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data.decoding import first_bytes
from client.data.references import BadImage, NiftiSlice

MOST_VOXELS = 2**26
"""512 x 512 x 256; BraTS has 240 x 240 x 155."""
_HEADER, _HEADER_2, _MOST_EXTENSION = 348, 540, 2**24
"""Bytes of a header of NIfTI-1 and NIfTI-2, and bytes between header and voxels."""
_PIECE = 2**20
_ENDS = (1, 99)
_KEPT = 6
"""Volumes of one and the next patient, three channels each, as 8 bits: 54 MiB for BraTS."""

_DIRECTION, _PLACE = 2e-3, 0.1
"""Differences that are rounding: of directions and spacings, relative to 1; of places, in voxels."""

Bytes3 = npt.NDArray[np.uint8]
Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """Where the voxels of a volume lie, X to the right, Y to the front, Z up."""

    shape: tuple[int, int, int]
    affine_44: Affine
    """From a voxel's indices to its place in mm."""
    is_placed: bool
    """Whether the file says where it lies (sform or qform)."""

    @property
    def spacing(self) -> Affine:
        return np.asarray(np.linalg.norm(self.affine_44[:3, :3], axis=0))

    @property
    def centre(self) -> Affine:
        return np.asarray(self.affine_44[:3] @ [*((side - 1) / 2 for side in self.shape), 1])


def picture(reference: NiftiSlice) -> Image.Image:
    """One axial slice as RGB, front up. Raises BadImage."""
    volumes = [scaled(path) for path in reference.channels]
    shapes = {volume.shape for volume in volumes}
    if len(shapes) > 1:
        raise BadImage(f"has channels of different sizes: {', '.join(map(_size, sorted(shapes)))}")
    check_one_grid(reference.channels)
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
    with _opened(path) as file:
        values = _voxels(file, path.name)
    np.nan_to_num(values, copy=False, posinf=0, neginf=0)
    return values


def intensities(path: Path) -> npt.NDArray[np.float32]:
    """A picture's values, with 0 outside of the head. Raises BadImage if there is nothing else."""
    values_XYZ = load(path)
    corners = values_XYZ[:: max(values_XYZ.shape[0] - 1, 1), :: max(values_XYZ.shape[1] - 1, 1)]
    corners = corners[:, :, :: max(values_XYZ.shape[2] - 1, 1)]
    ground = corners.flat[0]
    if ground != 0 and (corners == ground).all() and (values_XYZ != ground).any():
        values_XYZ[values_XYZ == ground] = 0
    if not values_XYZ.any():
        raise BadImage(f"has a file {path.name} without a value inside of the head; copy or convert it again")
    return values_XYZ


def grid(path: Path) -> VoxelGrid:
    """Where a volume lies, from its header alone. Raises BadImage."""
    try:
        status = path.stat()
    except OSError as error:
        raise BadImage(f"has no file {path.name} ({error.strerror})") from error
    return _grid(path, status.st_size, status.st_mtime_ns)


def check_one_grid(paths: Sequence[Path]) -> None:
    """Raises BadImage with what differs if these volumes lie on different grids."""
    first = grid(paths[0])
    for path in paths[1:]:
        if found := list(_differences(first, grid(path))):
            raise BadImage(
                f"has {path.name} on another grid than {paths[0].name}: {', '.join(found)}; resample it onto that grid"
            )


def _differences(first: VoxelGrid, other: VoxelGrid) -> Iterator[str]:
    """What differs by more than rounding: what `other` has, and what `first` has."""
    if first.shape != other.shape:
        yield f"{_size(other.shape)} voxels instead of {_size(first.shape)}"
    if first.is_placed != other.is_placed:
        yield (
            "no place (sform, qform)" if first.is_placed else "a place (sform, qform), which the other lacks"
        )
        return
    if (np.abs(other.spacing / first.spacing - 1) > _DIRECTION).any():
        yield f"voxels of {_mm(other.spacing, ' x ')} mm instead of {_mm(first.spacing, ' x ')} mm"
    directions = [one.affine_44[:3, :3] / one.spacing for one in (first, other)]
    if (np.abs(directions[1] - directions[0]) > _DIRECTION).any():
        cosine = float(np.clip((directions[0] * directions[1]).sum(axis=0).min(), -1, 1))
        yield f"axes turned by {np.degrees(np.arccos(cosine)):.1f} degrees"
    # A rounded turn or spacing moves the origin of a large volume, or its centre, but not both.
    near = _PLACE * float(first.spacing.min())
    origins = first.affine_44[:3, 3], other.affine_44[:3, 3]
    if all(np.abs(a - b).max() > near for a, b in (origins, (first.centre, other.centre))):
        yield f"origin ({_mm(origins[1], ', ')}) mm instead of ({_mm(origins[0], ', ')}) mm"


def _mm(values: Affine, between: str) -> str:
    return between.join(f"{value:.4g}" for value in values)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """A volume's file, unpacked if it is packed, and any error in it as BadImage."""
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if is_packed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked
            else:
                yield file
    except BadImage:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise BadImage(f"has a file {path.name} that is cut short or damaged; copy it again") from error
    except Exception as error:
        raise BadImage(
            f"has a file {path.name} that cannot be read as NIfTI ({type(error).__name__}); convert it again"
        ) from error


@lru_cache(maxsize=64)
def _grid(path: Path, _size_of_file: int, _changed: int) -> VoxelGrid:
    with _opened(path) as file:
        header, shape = _header(file, path.name)
        turn = _turn(header, path.name)
        affine_44 = header.get_best_affine() @ nibabel.orientations.inv_ornt_aff(turn, shape)  # type: ignore[no-untyped-call]
    sides = [shape[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3)]
    is_placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    return VoxelGrid((sides[0], sides[1], sides[2]), np.asarray(affine_44, np.float64), is_placed)


_LOCK = threading.Lock()


@lru_cache(maxsize=_KEPT)
def _scaled(path: Path, _size_of_file: int, _changed: int) -> Bytes3:
    values = intensities(path)
    brain = values != 0
    low, high = np.percentile(values[brain], _ENDS, overwrite_input=True)
    values -= low
    values *= 254 / max(float(high - low), 1e-6)
    np.clip(values, 0, 254, out=values)
    values += 1.5  # rounds; the darkest of the brain is 1
    values[~brain] = 0
    return values.astype(np.uint8)


def _header(file: IO[bytes] | gzip.GzipFile, name: str) -> tuple[Any, tuple[int, int, int]]:
    """Header and shape of a NIfTI-1 or NIfTI-2 volume; `file` is then behind the header. Raises BadImage."""
    start = file.read(_HEADER)
    is_second = start[:4] in (_HEADER_2.to_bytes(4, "little"), _HEADER_2.to_bytes(4, "big"))
    if is_second:
        start += file.read(_HEADER_2 - _HEADER)
    kind = first_bytes.what(start)
    if kind not in ("a NIfTI-1 volume", "a NIfTI-2 volume"):
        if kind is None and len(start) < _HEADER:
            raise BadImage(f"has a file {name} that is shorter than the header of a NIfTI; copy it again")
        instead = "" if kind is None else f" but {kind}"
        raise BadImage(f"has a file {name} that is no NIfTI-1 file{instead}; convert it, or fetch it again")
    of_kind = nibabel.Nifti2Header if is_second else nibabel.Nifti1Header
    header: Any = of_kind(start, check=False)  # type: ignore[no-untyped-call]
    shape = tuple(int(size) for size in header["dim"][1 : 1 + max(0, min(7, int(header["dim"][0])))])
    if len(shape) < 3 or min(shape) < 1 or any(size != 1 for size in shape[3:]):
        raise BadImage(f"has a file {name} of {_size(shape)} voxels; expected one volume of three axes")
    return header, (shape[0], shape[1], shape[2])


def _turn(header: Any, name: str) -> npt.NDArray[np.float64]:
    """How a volume is turned to X to the right, Y to the front, Z up. Raises BadImage."""
    affine = np.asarray(header.get_best_affine())
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BadImage(f"has a file {name} whose matrix gives its voxels no place in space; convert it again")
    return np.asarray(nibabel.io_orientation(affine))  # type: ignore[no-untyped-call]


@np.errstate(all="ignore")  # a file may hold any number, infinite ones included
def _voxels(file: IO[bytes] | gzip.GzipFile, name: str) -> npt.NDArray[np.float32]:
    """Values on the scale of the file, turned to RAS."""
    header, shape = _header(file, name)
    num_voxels = shape[0] * shape[1] * shape[2]
    if num_voxels > MOST_VOXELS:
        raise BadImage(f"has a file {name} of {num_voxels:,} voxels; expected at most {MOST_VOXELS:,}")
    kind = header.get_data_dtype()
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise BadImage(f"has a file {name} of {kind} voxels; expected whole or floating-point numbers")
    # Some programs leave it out.
    offset = float(header["vox_offset"]) or float(header.single_vox_offset)
    size_of_header = len(header.binaryblock)
    if not size_of_header <= offset <= size_of_header + _MOST_EXTENSION:
        raise BadImage(f"has a file {name} whose voxels begin at an impossible place; convert it again")
    file.read(int(offset) - size_of_header)
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
    turn = _turn(header, name)
    return np.asarray(nibabel.apply_orientation(values.reshape(shape, order="F"), turn))  # type: ignore[no-untyped-call]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no"
