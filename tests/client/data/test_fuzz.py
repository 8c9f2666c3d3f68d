"""Damaged files: whatever is wrong with one, the trainer hears BadImage or SiteDataError and goes on.

Examples are drawn from the same seed every time, so that a run says the same twice; by hand,
`FUZZ=5000 pytest tests/client/data/test_fuzz.py` draws others, and more of them.
"""

import gzip
import io
import os
import string
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from client.config import (
    BratsData,
    Columns,
    CsvData,
    DataConfig,
    DicomData,
    FedIsic2019Data,
    FoldersData,
    Ham10000Data,
    IsicData,
    MedMnistData,
)
from client.data.decoding.decode import decode
from client.data.readers import read as readers
from client.data.references import BadImage, DicomFrame, ImageReference, NiftiSlice, NpzEntry, PictureFile
from common.errors import SiteDataError
from tests.places import DATA

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
often = settings(
    max_examples=int(os.environ.get("FUZZ", "25")), derandomize="FUZZ" not in os.environ, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Cuts a file short, or changes some bytes, most likely at its start, or repeats a piece elsewhere."""
    share = st.floats(0, 1, exclude_max=True)
    place = st.one_of(share, share.map(lambda number: number**6))
    how = draw(st.sampled_from(["cut", "change", "repeat"]))
    start, end = draw(place), draw(place)
    changes = draw(st.lists(st.tuples(place, st.sampled_from([0, 1, 127, 128, 255])), min_size=1, max_size=9))

    def done(data: bytes) -> bytes:
        if how == "cut":
            return data[: int(start * len(data))]
        if how == "repeat":
            one, other = int(start * len(data)), int(end * len(data))
            return data[:one] + data[other : other + 64] + data[one:]
        changed = bytearray(data)
        for where, value in changes:
            changed[int(where * len(data))] = value
        return bytes(changed)

    return done


def usable_or_refused(image: ImageReference) -> None:
    with suppress(BadImage):
        assert decode(image, 16, "bilinear").shape == (16, 16, 3)


# --- pictures ----------------------------------------------------------------------------------


def picture(form: str, **options: object) -> bytes:
    across, down = np.meshgrid(np.arange(40), np.arange(32))
    image = Image.fromarray(np.stack([6 * across, 7 * down, 3 * (across + down)], 2).astype(np.uint8))
    file = io.BytesIO()
    (image.convert("P") if form == "GIF" else image).save(file, form, **options)
    return file.getvalue()


PICTURES = {
    "jpeg": picture("JPEG"),
    "progressive": picture("JPEG", progressive=True),
    "png": picture("PNG"),
    "tiff": picture("TIFF"),
    "tiff-lzw": picture("TIFF", compression="tiff_lzw"),
    "tiff-jpeg": picture("TIFF", compression="jpeg"),
    "bmp": picture("BMP"),
    "webp": picture("WEBP"),
    "gif": picture("GIF"),
    "jpeg2000": picture("JPEG2000"),
}


@pytest.mark.parametrize("form", PICTURES)
@often
@given(damage=damage())
def test_a_damaged_picture_is_usable_or_refused(form, damage, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(damage(PICTURES[form]))
    usable_or_refused(PictureFile(path))


# --- DICOM ---------------------------------------------------------------------------------------

TRANSFER = Path(pydicom.__file__).parent / "data" / "test_files"
DICOM = (
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "JPEG2000.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "examples_palette.dcm",
)


@pytest.mark.parametrize("name", DICOM)
@often
@given(damage=damage())
def test_a_damaged_dicom_is_usable_or_refused(name, damage, tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(damage((TRANSFER / name).read_bytes()))
    usable_or_refused(DicomFrame(path, 0))


@often
@given(damage=damage())
def test_a_folder_with_a_damaged_dicom_is_read_or_refused(damage, tmp_path):
    whole = (TRANSFER / "MR_small.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(damage(whole))
    (tmp_path / "labels.csv").write_text(
        f"SOPInstanceUID,label\n{pydicom.dcmread(TRANSFER / 'MR_small.dcm').SOPInstanceUID},a\n"
    )
    read_or_refused(DicomData(root=tmp_path, labels=tmp_path / "labels.csv"))


@pytest.mark.skipif(not DATA.exists(), reason="the real samples lie in ../shared/data, which is not here")
@often
@given(damage=damage(), number=st.integers(0, 15))
def test_damaged_real_samples_are_usable_or_refused(damage, number, tmp_path):
    with tarfile.open(DATA / "dicom_nifti_samples.tar") as archive:
        files = sorted((file for file in archive.getmembers() if file.isfile()), key=lambda file: file.name)
        file = archive.extractfile(files[number % len(files)])
        assert file is not None
        path = tmp_path / Path(files[number % len(files)].name).name
        path.write_bytes(damage(file.read()))
    usable_or_refused(DicomFrame(path, 0) if path.suffix == ".dcm" else NiftiSlice((path, path, path), 1))


# --- volumes and archives ------------------------------------------------------------------------


def volume() -> bytes:
    values = np.arange(16 * 16 * 3, dtype=np.int16).reshape(16, 16, 3)
    data: bytes = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    return data


@pytest.mark.parametrize("packed", [False, True])
@often
@given(damage=damage(), inside=st.booleans())
def test_a_damaged_volume_is_usable_or_refused(packed, damage, inside, tmp_path):
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    if packed and inside:
        path.write_bytes(gzip.compress(damage(volume())))
    else:
        path.write_bytes(damage(gzip.compress(volume()) if packed else volume()))
    usable_or_refused(NiftiSlice((path, path, path), 1))


@often
@given(damage=damage())
def test_a_patient_with_a_damaged_segmentation_is_read_or_refused(damage, tmp_path):
    folder = tmp_path / "HGG" / "Brats18_A_B_1"
    folder.mkdir(parents=True, exist_ok=True)
    for modality in ("t1ce", "t2", "flair", "seg"):
        data = volume()
        (folder / f"Brats18_A_B_1_{modality}.nii").write_bytes(damage(data) if modality == "seg" else data)
    read_or_refused(BratsData(root=tmp_path))


def archive(*, packed: bool) -> bytes:
    file = io.BytesIO()
    images, labels = np.zeros((3, 28, 28), np.uint8), np.array([[0], [1], [0]])
    (np.savez_compressed if packed else np.savez)(file, train_images=images, train_labels=labels)
    return file.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@often
@given(damage=damage())
def test_a_damaged_archive_is_read_or_refused(packed, damage, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(damage(archive(packed=packed)))
    read_or_refused(MedMnistData(archive=path))
    usable_or_refused(NpzEntry(path, "train_images", 2))


# --- tables and folders --------------------------------------------------------------------------


def read_or_refused(data: DataConfig) -> None:
    with suppress(SiteDataError):
        readers.read(data, ("a", "b"))


CELLS = st.text(st.sampled_from([*string.printable, "\0", "é", "\ufeff", "\x85"]), max_size=300)
TABLES = st.one_of(
    st.binary(max_size=300),
    st.lists(st.lists(CELLS, max_size=4), max_size=5).map(
        lambda rows: "\n".join(",".join(row) for row in rows).encode()
    ),
)
HEADERS = {
    "csv": b"file,label,group\n",
    "ham10000": b"lesion_id,image_id,dx,dx_type\n",
    "isic2018": b"image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n",
    "fed_isic2019": b"image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK,target,center,fold,fold2\n",
    "brats": b"Grade,BraTS_2020_subject_ID\n",
    "dicom": b"SOPInstanceUID,label\n",
}


@pytest.mark.parametrize("kind", HEADERS)
@often
@given(table=TABLES, has_header=st.booleans())
def test_any_table_is_read_or_refused(kind, table, has_header, tmp_path):
    file = tmp_path / "name_mapping.csv"
    file.write_bytes((HEADERS[kind] if has_header else b"") + table)
    read_or_refused(
        {
            "csv": CsvData(labels=file, columns=Columns(group="group")),
            "ham10000": Ham10000Data(metadata=file),
            "isic2018": IsicData(kind="isic2018", ground_truth=file, images=tmp_path, metadata=file),
            "fed_isic2019": FedIsic2019Data(split_file=file, center=0, images=tmp_path),
            "brats": BratsData(root=tmp_path),
            "dicom": DicomData(root=tmp_path, labels=file),
        }[kind]
    )


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "../" * 2000 + "x", "nv/" * 90 + "a.png"])
def test_a_file_name_that_no_disk_can_have_is_a_problem_of_its_row(name, tmp_path):
    (tmp_path / "labels.csv").write_text(f"file,label\n{name},a\n")
    with pytest.raises(SiteDataError, match="row 2: no image"):
        readers.read(CsvData(labels=tmp_path / "labels.csv"), ("a", "b"))


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refused(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(SiteDataError, match="cannot be read: Permission denied"):
        readers.read(FoldersData(root=tmp_path), ("a", "b"))


@pytest.mark.parametrize("kind", ["csv", "ham10000"])
def test_a_table_that_is_no_plain_file_is_not_waited_for(kind, tmp_path):
    os.mkfifo(tmp_path / "labels.csv")
    file = tmp_path / "labels.csv"
    data = CsvData(labels=file) if kind == "csv" else Ham10000Data(metadata=file)
    with pytest.raises(SiteDataError, match="is not a file"):
        readers.read(data, ("a", "b"))
