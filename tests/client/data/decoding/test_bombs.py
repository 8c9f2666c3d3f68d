"""Small files that unpack to much: they are refused, and the process that looks at them stays small."""

import gzip
import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from tests.places import ROOT

SAMPLE = Path(pydicom.__file__).parent / "data" / "test_files" / "MR_small.dcm"
MUCH, LITTLE_MIB = 2**26, 40
"""64 MiB are in each file; a process that unpacked one would grow by more than that."""

LOOK = """
import json, resource, sys
from pathlib import Path
from client.config import MedMnistData
from client.data import references
from client.data.decoding.decode import decode
from client.data.readers.read import read
from common.errors import SiteDataError

def look(path):
    try:
        if path.suffix == ".npz":
            read(MedMnistData(archive=path), ("0", "1"))
        elif path.suffix == ".gz":
            decode(references.NiftiSlice((path, path, path), 0), 16, "bilinear")
        elif path.suffix == ".dcm":
            decode(references.DicomFrame(path, 0), 16, "bilinear")
        else:
            decode(references.PictureFile(path), 16, "bilinear")
    except (references.BadImage, SiteDataError) as refused:
        return str(refused)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

*files, = map(Path, sys.argv[1:])
look(files[0])
before = peak()
print(json.dumps([[look(path), peak() - before] for path in files[1:]]))
"""


def png(path: Path) -> None:
    Image.new("1", (20000, 20000)).save(path)


def jpeg(path: Path) -> None:
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG")
    path.write_bytes(file.getvalue().replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 65500, 65500), 1))


def tiff(path: Path) -> None:
    """16 x 16 pixels in one tile of 8,192 x 8,192."""
    data = zlib.compress(bytes(MUCH), 1)
    entries = {
        256: 16,
        257: 16,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: 8192,
        323: 8192,
        324: 0,
        325: len(data),
    }
    entries[324] = 8 + 2 + 12 * len(entries) + 4
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + data)


def npz(name: str, head: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        images = io.BytesIO()
        np.save(images, np.zeros((2, 28, 28), np.uint8))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            if name != "train_images.npy":
                archive.writestr("train_images.npy", images.getvalue())
            archive.writestr(name, head + bytes(MUCH))

    return make


def npy_head(shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return head.getvalue()


def nifti(path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((1024, 1024, 128))
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4 + MUCH), 1))


def rle(path: Path) -> None:
    data = pydicom.dcmread(SAMPLE)
    run = b"\x81\x00" * (MUCH // 128)  # 128 zeros each
    data.PixelData = pydicom.encaps.encapsulate(
        [struct.pack("<16I", 2, 64, 64 + len(run), *[0] * 13) + run + run[:2]]
    )
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = RLELossless
    data.save_as(path)


def deflated(path: Path) -> None:
    data = pydicom.dcmread(SAMPLE)
    data.PixelData = bytes(MUCH)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)


BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a.png": (png, "more pixels than"),
    "b.jpg": (jpeg, "more pixels than"),
    "c.tif": (tiff, "has tiles of 8192 x 8192 pixels"),
    "d.npz": (npz("train_labels.npy", npy_head((2 * MUCH,))), "train_labels of 134,217,728 bytes"),
    "e.npz": (
        npz("train_images.npy", b"\x93NUMPY\x02\x00" + MUCH.to_bytes(4, "little")),
        "impossible length",
    ),
    "f.nii.gz": (nifti, "134,217,728 voxels; expected at most"),
    "g.dcm": (rle, "cannot be decoded"),
    "h.dcm": (deflated, "deflated"),
}


@pytest.mark.slow
def test_bombs_are_refused_and_take_no_memory(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "ordinary.png")
    for name, (make, _) in BOMBS.items():
        make(tmp_path / name)
        assert (tmp_path / name).stat().st_size < MUCH / 25, name
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *(tmp_path / name for name in ("ordinary.png", *BOMBS))],
        cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=250,
    )  # fmt: skip
    for (refused, grown_mib), (name, (_, said)) in zip(json.loads(done.stdout), BOMBS.items(), strict=True):
        assert said in str(refused), name
        assert grown_mib < LITTLE_MIB, name
