"""Volumes that are used together: on one grid, but for rounding; and read by their first bytes."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from client.data.decoding import nifti
from client.data.decoding.decode import decode
from client.data.references import BadImage, NiftiSlice
from tests.client.data.readers.test_brats import TURNED, brain, volume

DICOM = Path(pydicom.__file__).parent / "data" / "test_files" / "MR_small.dcm"


def moved(*, by: float = 0, scaled: float = 1, turned: float = 0) -> np.ndarray:
    """The grid of BraTS, moved along X, with larger voxels along Z, and turned about Z by so many degrees."""
    angle = np.radians(turned)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, scaled]])
    affine = TURNED.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[0, 3] += by
    return affine


def both(tmp_path: Path, affine: np.ndarray, values: np.ndarray | None = None) -> list[Path]:
    values = brain(1) if values is None else values
    return [volume(tmp_path / "image.nii", brain(1)), volume(tmp_path / "mask.nii", values, affine)]


# --- one grid --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "affine",
    [
        TURNED + 1e-3 * np.array([[1, -1, 1, 1], [1, 1, -1, 1], [-1, 1, 1, 1], [0, 0, 0, 0]]),
        moved(by=0.05),
        moved(scaled=1.001),
        moved(turned=0.05),
        TURNED.astype(np.float32) * np.float32(1.0000001),
    ],
    ids=["entries", "origin", "spacing", "turn", "float32"],
)
def test_rounding_is_no_other_grid(affine, tmp_path):
    nifti.check_one_grid(both(tmp_path, affine))


def test_a_place_as_quaternions_is_the_same_as_one_as_a_matrix(tmp_path):
    paths = both(tmp_path, moved(turned=30, by=-71.3))
    image = nibabel.load(paths[1])
    image.set_sform(None, 0)
    image.set_qform(moved(turned=30, by=-71.3), 1)
    nibabel.save(image, tmp_path / "other.nii")
    nifti.check_one_grid([paths[1], tmp_path / "other.nii"])


def test_a_mask_that_is_stored_the_other_way_round_lies_on_the_same_grid(tmp_path):
    # Stored from left to right instead of from right to left, with the matrix that says so.
    affine = TURNED.copy()
    affine[0, 0], affine[0, 3] = 1, -15
    values = brain(1)
    values[4, 5, 5] = 99
    paths = [volume(tmp_path / "image.nii", values), volume(tmp_path / "mask.nii", values[::-1], affine)]
    nifti.check_one_grid(paths)
    assert np.array_equal(nifti.load(paths[0]), nifti.load(paths[1]))


@pytest.mark.parametrize(
    ("affine", "values", "said"),
    [
        (moved(by=0.5), None, r"origin \(-14.5, -15, 0\) mm instead of \(-15, -15, 0\) mm"),
        (moved(scaled=2), None, "voxels of 1 x 1 x 2 mm instead of 1 x 1 x 1 mm"),
        (moved(turned=3), None, "axes turned by 3.0 degrees"),
        (TURNED, brain(1)[:, :, :-1], "16 x 16 x 11 voxels instead of 16 x 16 x 12"),
        (np.eye(4), None, r"origin \(0, 0, 0\) mm instead of \(-15, -15, 0\) mm"),
    ],
    ids=["shifted", "resampled", "turned", "a slice less", "mirrored"],
)
def test_what_differs_is_said_with_numbers(affine, values, said, tmp_path):
    with pytest.raises(BadImage, match=f"has mask.nii on another grid than image.nii: .*{said}"):
        nifti.check_one_grid(both(tmp_path, affine, values))


def test_a_volume_without_a_place_cannot_be_compared_with_one_that_has_one(tmp_path):
    paths = both(tmp_path, TURNED)
    image = nibabel.load(paths[1])
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "lost.nii")
    with pytest.raises(BadImage, match=r"no place \(sform, qform\)"):
        nifti.check_one_grid([paths[0], tmp_path / "lost.nii"])
    nifti.check_one_grid([tmp_path / "lost.nii", tmp_path / "lost.nii"])


def test_channels_on_another_grid_are_refused_when_they_are_decoded(tmp_path):
    image, mask = both(tmp_path, moved(by=4))
    with pytest.raises(BadImage, match=r"mask\.nii on another grid"):
        decode(NiftiSlice((image, image, mask), 5), 16, "nearest")


# --- by the first bytes ----------------------------------------------------------------------


def test_packed_or_not_is_seen_in_the_file_and_not_in_its_name(tmp_path):
    plain = volume(tmp_path / "a.nii", brain(1))
    (tmp_path / "b.nii").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.nii.gz").write_bytes(plain.read_bytes())
    for name in ("b.nii", "c.nii.gz"):
        assert np.array_equal(nifti.load(tmp_path / name), nifti.load(plain))
        nifti.check_one_grid([plain, tmp_path / name])


@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_2_is_read(order, tmp_path):
    header = nibabel.Nifti2Header(endianness=order)
    image = nibabel.Nifti2Image(brain(3), TURNED, header)
    nibabel.save(image, tmp_path / "second.nii")
    assert np.array_equal(
        nifti.load(tmp_path / "second.nii"), nifti.load(volume(tmp_path / "first.nii", brain(3)))
    )
    nifti.check_one_grid([tmp_path / "first.nii", tmp_path / "second.nii"])


def test_a_background_that_is_not_0_stays_black(tmp_path):
    """Some programs write -1024 where no head is; it would be most of what is scaled."""
    head = np.full((16, 16, 12), -1024, np.int16)
    head[4:12, 4:12, 4:8] = np.arange(50, 306).reshape(8, 8, 4)
    nibabel.save(nibabel.Nifti1Image(head, np.eye(4)), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(np.where(head < 0, 0, head), np.eye(4)), tmp_path / "b.nii")
    assert np.array_equal(nifti.scaled(tmp_path / "a.nii"), nifti.scaled(tmp_path / "b.nii"))
    assert nifti.scaled(tmp_path / "a.nii")[0, 0, 0] == 0


@pytest.mark.parametrize("value", [0, np.nan])
def test_a_volume_without_a_value_is_refused(tmp_path, value):
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 8), value, np.float32), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(BadImage, match=r"a\.nii without a value inside of the head"):
        nifti.scaled(tmp_path / "a.nii")


def test_a_header_that_leaves_out_where_its_voxels_begin_is_read(tmp_path):
    values = np.arange(512, dtype=np.int16).reshape(8, 8, 8)
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    data = bytearray(path.read_bytes())
    data[108:112] = bytes(4)  # vox_offset
    path.write_bytes(data)
    assert np.array_equal(nifti.load(path), values)


def test_four_axes_with_one_volume_are_one_volume(tmp_path):
    path = volume(tmp_path / "a.nii", brain(1)[..., None])
    assert np.array_equal(nifti.load(path), nifti.load(volume(tmp_path / "b.nii", brain(1))))
    assert nifti.grid(path).shape == (16, 16, 12)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DICOM.read_bytes(), "no NIfTI-1 file but a DICOM file"),
        (b"<!DOCTYPE html><html>sign in</html>", "no NIfTI-1 file but a web page"),
        (gzip.compress(gzip.compress(bytes(999), mtime=0), mtime=0), "no NIfTI-1 file but a gzip file"),
        (b"ObjectType = Image\n" + bytes(999), "no NIfTI-1 file but a MetaImage volume"),
        (b"NRRD0004\n" + bytes(999), "no NIfTI-1 file but an NRRD volume"),
        (b"", "no NIfTI-1 file but an empty file"),
    ],
)
def test_what_is_called_a_volume_and_is_none_is_named(data, said, tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(data)
    with pytest.raises(BadImage, match=said):
        nifti.load(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.AnalyzeImage])
def test_the_header_of_a_pair_is_not_taken_for_a_volume(kind, tmp_path):
    header = kind(brain(1), np.diag([-1, 1, 1, 1])).header.binaryblock
    (tmp_path / "a.nii").write_bytes(header + bytes(brain(1).nbytes))
    with pytest.raises(BadImage, match=r"no NIfTI-1 file but the header of .* pair \(.hdr and .img\)"):
        nifti.load(tmp_path / "a.nii")


def test_a_matrix_that_is_none_is_a_sentence(tmp_path):
    image = nibabel.Nifti1Image(brain(1), TURNED)
    image.header["srow_x"] = 0
    image.header["sform_code"], image.header["vox_offset"] = 1, 352
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4) + brain(1).tobytes("F"))
    with pytest.raises(BadImage, match="whose matrix gives its voxels no place in space"):
        nifti.load(tmp_path / "a.nii")
